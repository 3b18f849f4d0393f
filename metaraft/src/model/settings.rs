//! Settings of the cluster: names, defaults, what they mean, and what values they take.
//!
//! A setting is kept as text in the root group; one that was never set has its default.

use std::collections::BTreeMap;
use std::time::Duration;

/// A setting's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingDefinition {
    /// Its name.
    pub name: &'static str,
    /// Its value until it is set, as text.
    pub default_value: &'static str,
    /// The smallest and largest value, in milliseconds.
    pub range_ms: (u64, u64),
    /// What it is for.
    pub description: &'static str,
}

const SECOND_MS: u64 = 1000;
const DAY_MS: u64 = 24 * 60 * 60 * SECOND_MS;
const YEAR_MS: u64 = 365 * DAY_MS;

/// The setting that data groups are told as well ([`super::command::DataStep::JournalHorizonSet`]).
pub const JOURNAL_HORIZON: &str = "journal-horizon";

/// How long tombstones are kept in a group that was told nothing: the default of [`JOURNAL_HORIZON`].
pub const JOURNAL_HORIZON_DEFAULT_MS: u64 = 30 * DAY_MS;

/// All settings, by name. All are durations, written like `30d`, `90s` or `250ms`.
pub const SETTINGS: &[SettingDefinition] = &[
    SettingDefinition {
        name: "hold-time",
        default_value: "1d",
        range_ms: (0, YEAR_MS),
        description: "how long the shards of a buried stripe are kept before they are deleted",
    },
    SettingDefinition {
        name: JOURNAL_HORIZON,
        default_value: "30d",
        range_ms: (SECOND_MS, 10 * YEAR_MS),
        description: "how long devices that were away are told of what was deleted; after longer they list their tree anew",
    },
    SettingDefinition {
        name: "node-grace",
        default_value: "4s",
        range_ms: (SECOND_MS, DAY_MS),
        description: "how long after its last heartbeat a storage node counts as up",
    },
    SettingDefinition {
        name: "read-hedge",
        default_value: "500ms",
        range_ms: (1, 60 * SECOND_MS),
        description: "how long a read waits for a shard before it asks for parity as well",
    },
    SettingDefinition {
        name: "reclaim-delay",
        default_value: "30d",
        range_ms: (0, 10 * YEAR_MS),
        description: "how long a chunk stays after its last reference has gone",
    },
    SettingDefinition {
        name: "session-life",
        default_value: "7d",
        range_ms: (60 * SECOND_MS, YEAR_MS),
        description: "how long an upload session can be continued",
    },
    SettingDefinition {
        name: "write-deadline",
        default_value: "10s",
        range_ms: (100, 600 * SECOND_MS),
        description: "how long a write waits for a disk before it goes to another volume",
    },
];

/// Why a setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// There is none of that name.
    #[error("no setting {name:?}; `keepstone admin settings ls` lists them")]
    Unknown {
        /// As given.
        name: String,
    },
    /// The value is not one that it takes.
    #[error("{name} takes a duration such as 90s, 12h or 30d, from {least} to {most}; not {value:?}")]
    BadValue {
        /// The setting.
        name: String,
        /// As given.
        value: String,
        /// Smallest.
        least: String,
        /// Largest.
        most: String,
    },
}

/// Parses a duration: a whole number and one of `ms`, `s`, `m`, `h`, `d`.
#[must_use]
pub fn parse_duration_ms(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text.get(..digits)?.parse().ok()?;
    let unit_ms = match text.get(digits..)? {
        "ms" => 1,
        "s" => SECOND_MS,
        "m" => 60 * SECOND_MS,
        "h" => 60 * 60 * SECOND_MS,
        "d" => DAY_MS,
        _ => return None,
    };
    number.checked_mul(unit_ms)
}

fn format_duration_ms(ms: u64) -> String {
    let units = [(DAY_MS, "d"), (60 * 60 * SECOND_MS, "h"), (60 * SECOND_MS, "m"), (SECOND_MS, "s")];
    units
        .into_iter()
        .find(|(unit_ms, _)| ms >= *unit_ms && ms.is_multiple_of(*unit_ms))
        .map_or_else(|| format!("{ms}ms"), |(unit_ms, unit)| format!("{}{unit}", ms / unit_ms))
}

/// The definition of a setting, if `value` is one that it takes.
///
/// # Errors
/// For an unknown name, or a value that is no duration or out of range.
pub fn check(name: &str, value: &str) -> Result<&'static SettingDefinition, SettingError> {
    let definition = SETTINGS
        .iter()
        .find(|definition| definition.name == name)
        .ok_or_else(|| SettingError::Unknown { name: name.to_owned() })?;
    let (least, most) = definition.range_ms;
    match parse_duration_ms(value) {
        Some(ms) if (least..=most).contains(&ms) => Ok(definition),
        _ => Err(SettingError::BadValue {
            name: name.to_owned(),
            value: value.to_owned(),
            least: format_duration_ms(least),
            most: format_duration_ms(most),
        }),
    }
}

/// The settings in force: those that were set over the defaults.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    set: BTreeMap<String, String>,
}

impl Settings {
    /// From the rows of the root group.
    #[must_use]
    pub fn new(set: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { set: set.into_iter().collect() }
    }

    /// The value in force, as text; `None` for an unknown name.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        let definition = SETTINGS.iter().find(|definition| definition.name == name)?;
        Some(self.set.get(name).map_or(definition.default_value, String::as_str))
    }

    fn duration(&self, name: &str) -> Duration {
        let ms = self.value(name).and_then(parse_duration_ms);
        debug_assert!(ms.is_some(), "{name} is defined and was checked");
        Duration::from_millis(ms.unwrap_or(0))
    }

    /// `node-grace`.
    #[must_use]
    pub fn node_grace(&self) -> Duration {
        self.duration("node-grace")
    }

    /// `read-hedge`.
    #[must_use]
    pub fn read_hedge(&self) -> Duration {
        self.duration("read-hedge")
    }

    /// `session-life`.
    #[must_use]
    pub fn session_life(&self) -> Duration {
        self.duration("session-life")
    }

    /// `write-deadline`.
    #[must_use]
    pub fn write_deadline(&self) -> Duration {
        self.duration("write-deadline")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_that_its_setting_takes() {
        for definition in SETTINGS {
            assert!(check(definition.name, definition.default_value).is_ok(), "{}", definition.name);
        }
        let horizon = Settings::default().value(JOURNAL_HORIZON).and_then(parse_duration_ms);
        assert_eq!(horizon, Some(JOURNAL_HORIZON_DEFAULT_MS));
    }

    #[test]
    fn values_out_of_range_and_unknown_names_are_refused() {
        for bad in ["", "1", "-1s", "1 s", "0ms", "400d", "99999999999999999999d", "1w"] {
            assert!(check("node-grace", bad).is_err(), "{bad}");
        }
        assert!(check("node-grace", "2s").is_ok());
        assert!(matches!(check("no-such", "1s"), Err(SettingError::Unknown { .. })));
    }

    #[test]
    fn what_was_set_is_in_force() {
        let settings = Settings::new([("node-grace".to_owned(), "2m".to_owned())]);
        assert_eq!(settings.node_grace(), Duration::from_secs(120));
        assert_eq!(settings.write_deadline(), Duration::from_secs(10));
    }
}
