//! A profile: where a gateway is, who vouches for it, and the token of this device. A TOML file, mode 0600.
//!
//! It holds the CA's certificates themselves, so that it can be copied to another place or machine as it is. Older
//! profiles name a file with them instead, which must lie where it lay, and still do.
//!
//! Invariants:
//! - The file is replaced as a whole, and is never readable by others, not even for a moment.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::connection::ConnectOptions;
use crate::private_file;

/// Largest profile or CA file that is read.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What a PEM text has and no path would.
pub(crate) const PEM_MARK: &str = "-----BEGIN ";

/// The certificates of a cluster's CA: in a profile either PEM text or a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Ca {
    /// PEM text.
    Pem(String),
    /// A PEM file, absolute or relative to the profile's directory.
    File(PathBuf),
}

impl From<String> for Ca {
    fn from(text: String) -> Self {
        if text.contains(PEM_MARK) { Self::Pem(text) } else { Self::File(text.into()) }
    }
}

impl From<Ca> for String {
    fn from(ca: Ca) -> Self {
        match ca {
            Ca::Pem(text) => text,
            Ca::File(path) => path.to_string_lossy().into_owned(),
        }
    }
}

impl Ca {
    /// The certificates in a PEM file, to be kept in a profile. Blocks.
    ///
    /// # Errors
    /// If it cannot be read, or there are none in it.
    pub fn read(path: &Path) -> Result<Self, ProfileError> {
        let bytes = read_ca(path)?;
        match String::from_utf8(bytes) {
            Ok(text) if text.contains(PEM_MARK) => Ok(Self::Pem(text)),
            Ok(_) | Err(_) => Err(ProfileError::NoCertificates { path: path.to_owned() }),
        }
    }
}

fn read_ca(path: &Path) -> Result<Vec<u8>, ProfileError> {
    read_bounded(path).map_err(|source| ProfileError::Io {
        what: "read the CA certificate",
        path: path.to_owned(),
        source,
    })
}

/// The profile's keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `https://HOST:PORT`.
    pub endpoint: String,
    /// Who vouches for the gateway.
    pub ca: Ca,
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
    /// The profile names its CA's file by where it was made, and is not there any more.
    #[error(
        "{} has been moved or copied without the CA certificate that it names, {}: copy that too, or sign in anew \
         with `keepstone login`, whose profiles hold it", path.display(), ca.display()
    )]
    CaLeftBehind {
        /// The profile.
        path: PathBuf,
        /// The file, as it is named.
        ca: PathBuf,
    },
    /// A file that should hold a CA's certificates has none.
    #[error("{} holds no certificate (in PEM)", path.display())]
    NoCertificates {
        /// The file.
        path: PathBuf,
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

    /// Gives all that a connection needs; reads the CA's certificates if they are in a file. `path` is the profile's
    /// own.
    ///
    /// # Errors
    /// If the CA's file cannot be read.
    pub fn connect_options(&self, path: &Path) -> Result<ConnectOptions, ProfileError> {
        let ca_pem = match &self.ca {
            Ca::Pem(text) => text.clone().into_bytes(),
            Ca::File(file) => {
                let at = path.parent().unwrap_or(Path::new("")).join(file);
                match read_ca(&at) {
                    Err(ProfileError::Io { source, .. })
                        if file.is_relative() && source.kind() == std::io::ErrorKind::NotFound =>
                    {
                        return Err(ProfileError::CaLeftBehind { path: path.to_owned(), ca: file.clone() });
                    }
                    read => read?,
                }
            }
        };
        Ok(ConnectOptions { endpoint: self.endpoint.clone(), ca_pem, token: Some(self.token.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    fn profile() -> Profile {
        Profile {
            endpoint: "https://127.0.0.1:7420".to_owned(),
            ca: Ca::Pem(PEM.to_owned()),
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
    fn a_profile_that_is_copied_has_its_ca() {
        let (made, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pem = made.path().join("ca.pem");
        std::fs::write(&pem, PEM).unwrap();
        let profile = Profile { ca: Ca::read(&pem).unwrap(), ..profile() };
        profile.save(&made.path().join("profile.toml")).unwrap();
        let copy = copied.path().join("p.toml");
        std::fs::copy(made.path().join("profile.toml"), &copy).unwrap();
        drop(made);
        let options = Profile::load(&copy).unwrap().connect_options(&copy).unwrap();
        assert_eq!(options.ca_pem, PEM.as_bytes());
        std::fs::write(&copy, "no certificate").unwrap();
        assert!(matches!(Ca::read(&copy), Err(ProfileError::NoCertificates { .. })));
    }

    #[test]
    fn the_ca_of_an_old_profile_is_found_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("pki")).unwrap();
        std::fs::write(directory.path().join("pki/ca.pem"), "PEM").unwrap();
        let path = directory.path().join("profile.toml");
        let old = "endpoint = \"https://h:1\"\nca = \"pki/ca.pem\"\ntoken = \"t\"\naccount = \"a\"\ndevice = \"d\"\n";
        std::fs::write(&path, old).unwrap();
        let profile = Profile::load(&path).unwrap();
        assert_eq!(profile.connect_options(&path).unwrap().ca_pem, b"PEM");
        let elsewhere = tempfile::tempdir().unwrap().path().join("profile.toml");
        let error = profile.connect_options(&elsewhere).unwrap_err();
        assert!(error.to_string().contains("pki/ca.pem: copy that too"), "{error}");
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
