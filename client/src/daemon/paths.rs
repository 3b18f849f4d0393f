//! Where the daemon's files are: by the XDG base directories, or as the environment says.

use std::path::{Path, PathBuf};

/// Names another configuration file; the socket goes with it.
pub const CONFIG_VARIABLE: &str = "KEEPSTONE_SYNC_CONFIG";
/// The configuration's name in its directory.
const CONFIG_NAME: &str = "sync.toml";

/// Neither the wanted variable nor HOME is set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither {variable} nor HOME is set: set one of them")]
pub struct NoHome {
    variable: &'static str,
}

/// The daemon's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The configuration.
    pub config: PathBuf,
    /// Where commands reach the daemon.
    pub socket: PathBuf,
    /// Where a daemon that was started in the background writes its log.
    pub log: PathBuf,
}

impl Paths {
    /// As the environment says.
    ///
    /// # Errors
    /// If it says too little.
    pub fn from_environment() -> Result<Self, NoHome> {
        Self::from_variables(|name| std::env::var_os(name).map(PathBuf::from))
    }

    /// Where commands reach a `sync run` of a folder, beside the daemon's socket.
    #[must_use]
    pub fn socket_of_run(&self, directory: &Path) -> PathBuf {
        self.socket.with_file_name(format!("run-{:016x}.sock", fingerprint(directory)))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<Self, NoHome> {
        // As the XDG specification wants it: what is not absolute counts as not set.
        let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
        let base = |name: &'static str, below_home: &str| {
            let base = absolute(name).or_else(|| Some(absolute("HOME")?.join(below_home)));
            base.map(|base| base.join("keepstone")).ok_or(NoHome { variable: name })
        };
        let other = variable(CONFIG_VARIABLE).filter(|path| !path.as_os_str().is_empty());
        // One daemon per configuration, so each has a socket of its own.
        let suffix = other.as_deref().map(|path| format!("-{:016x}", fingerprint(path))).unwrap_or_default();
        let config = match other {
            Some(path) => path,
            None => base("XDG_CONFIG_HOME", ".config")?.join(CONFIG_NAME),
        };
        let state = base("XDG_STATE_HOME", ".local/state");
        let runtime = absolute("XDG_RUNTIME_DIR").map(|base| base.join("keepstone"));
        let socket = match runtime {
            Some(runtime) => runtime,
            None => state.clone()?,
        };
        let log = state.unwrap_or_else(|_no_home| socket.clone());
        Ok(Self {
            config,
            socket: socket.join(format!("sync{suffix}.sock")),
            log: log.join(format!("sync{suffix}.log")),
        })
    }
}

/// FNV-1a of the absolute path: the same in every process, whatever built it.
fn fingerprint(path: &Path) -> u64 {
    use std::os::unix::ffi::OsStrExt;
    let path = std::path::absolute(path).unwrap_or_else(|_error| path.to_owned());
    path.as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(variables: &[(&str, &str)]) -> Result<Paths, NoHome> {
        Paths::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn the_xdg_directories_are_followed() {
        let plain = paths(&[("HOME", "/h")]).unwrap();
        assert_eq!(plain.config, Path::new("/h/.config/keepstone/sync.toml"));
        assert_eq!(plain.socket, Path::new("/h/.local/state/keepstone/sync.sock"));
        assert_eq!(plain.log, Path::new("/h/.local/state/keepstone/sync.log"));
        let all = [("XDG_CONFIG_HOME", "/c"), ("XDG_RUNTIME_DIR", "/run/u"), ("XDG_STATE_HOME", "/s")];
        let all = paths(&all).unwrap();
        assert_eq!(all.config, Path::new("/c/keepstone/sync.toml"));
        assert_eq!(all.socket, Path::new("/run/u/keepstone/sync.sock"));
        assert_eq!(all.log, Path::new("/s/keepstone/sync.log"));
        assert!(paths(&[]).is_err());
        assert_eq!(paths(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "relative")]), paths(&[("HOME", "/h")]));
    }

    #[test]
    fn another_configuration_has_another_socket() {
        let of = |config| paths(&[("HOME", "/h"), (CONFIG_VARIABLE, config)]).unwrap();
        assert_eq!(of("/a.toml").config, Path::new("/a.toml"));
        assert_ne!(of("/a.toml").socket, of("/b.toml").socket);
        assert_eq!(of("").socket, Path::new("/h/.local/state/keepstone/sync.sock"));
    }
}
