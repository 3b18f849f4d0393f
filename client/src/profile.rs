//! A profile: where a gateway is, who vouches for it, and the token of this device. A TOML file, mode 0600.
//!
//! Invariants:
//! - The file is replaced as a whole, and is never readable by others, not even for a moment.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::connection::ConnectOptions;
use crate::private_file;

/// Largest profile or CA file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The profile's keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `https://HOST:PORT`.
    pub endpoint: String,
    /// PEM file of the cluster's CA, absolute or relative to the profile's directory.
    pub ca: PathBuf,
    /// The device's token.
    pub token: String,
    /// The account's id, in hex.
    pub account: String,
    /// The device's id, in hex.
    pub device: String,
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profile")
            .field("endpoint", &self.endpoint)
            .field("ca", &self.ca)
            .field("account", &self.account)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Why a profile cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// There is none.
    #[error(
        "there is no profile at {}: sign in with `keepstone login`, start a cluster with `keepstone up`, \
         or name a profile with --profile FILE", path.display()
    )]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// Read or write.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or a key is missing or unknown.
    #[error("{} is not a profile: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other("too large"));
    }
    Ok(bytes)
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// If there is none, or it cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let bytes = read_bounded(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ProfileError::Missing { path: path.to_owned() },
            _ => ProfileError::Io { what: "read", path: path.to_owned(), source },
        })?;
        let malformed = |reason| ProfileError::Malformed { path: path.to_owned(), reason };
        let text = String::from_utf8(bytes).map_err(|error| malformed(error.to_string()))?;
        toml::from_str(&text).map_err(|error| malformed(error.message().to_owned()))
    }

    /// Writes the profile, replacing what is there: to a new file of mode 0600 beside it, synced, then renamed.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), ProfileError> {
        let text = toml::to_string(self)
            .map_err(|error| ProfileError::Malformed { path: path.to_owned(), reason: error.to_string() })?;
        let io = |source| ProfileError::Io { what: "write", path: path.to_owned(), source };
        private_file::replace(path, text.as_bytes()).map_err(io)
    }

    /// Reads the CA's certificates and gives all that a connection needs. `path` is the profile's own.
    ///
    /// # Errors
    /// If the CA's file cannot be read.
    pub fn connect_options(&self, path: &Path) -> Result<ConnectOptions, ProfileError> {
        let ca = path.parent().unwrap_or(Path::new("")).join(&self.ca);
        let ca_pem = read_bounded(&ca).map_err(|source| ProfileError::Io {
            what: "read the CA certificate",
            path: ca,
            source,
        })?;
        Ok(ConnectOptions { endpoint: self.endpoint.clone(), ca_pem, token: Some(self.token.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn profile() -> Profile {
        Profile {
            endpoint: "https://127.0.0.1:7420".to_owned(),
            ca: "pki/ca.pem".into(),
            token: "ks1_secret".to_owned(),
            account: "00".repeat(16),
            device: "00".repeat(8),
        }
    }

    #[test]
    fn a_saved_profile_loads_alike_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.toml");
        std::fs::write(&path, "old").unwrap();
        profile().save(&path).unwrap();
        assert_eq!(Profile::load(&path).unwrap(), profile());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn the_ca_is_found_beside_the_profile() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("pki")).unwrap();
        std::fs::write(directory.path().join("pki/ca.pem"), "PEM").unwrap();
        let options = profile().connect_options(&directory.path().join("profile.toml")).unwrap();
        assert_eq!(options.ca_pem, b"PEM");
    }

    #[test]
    fn a_missing_or_malformed_profile_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.toml");
        assert!(Profile::load(&path).unwrap_err().to_string().contains("keepstone login"));
        std::fs::write(&path, "endpoint = 1").unwrap();
        assert!(matches!(Profile::load(&path), Err(ProfileError::Malformed { .. })));
        std::fs::write(&path, format!("{}\nextra = 1\n", toml::to_string(&profile()).unwrap())).unwrap();
        assert!(Profile::load(&path).unwrap_err().to_string().contains("extra"));
    }

    #[test]
    fn the_token_is_not_in_the_debug_form() {
        assert!(!format!("{:?}", profile()).contains("secret"));
    }
}
