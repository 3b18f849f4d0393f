//! Settings of the cluster: names, defaults, what they mean, and what values they take.
//!
//! A setting is kept as text in the root group; one that was never set has its default.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::placement::Spread;

use super::UPLOAD_CHUNKS_MAX;
use super::command::OpenUploadsMax;

/// A setting's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingDefinition {
    /// Its name.
    pub name: &'static str,
    /// Its value until it is set, as text.
    pub default_value: &'static str,
    /// What values it takes.
    pub values: SettingValues,
    /// What it is for.
    pub description: &'static str,
}

/// The values that a setting takes, from the smallest to the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingValues {
    /// Durations, in milliseconds.
    DurationMs(u64, u64),
    /// Whole numbers.
    Count(u64, u64),
}

impl SettingValues {
    fn takes(self, value: &str) -> bool {
        match self {
            Self::DurationMs(least, most) => {
                parse_duration_ms(value).is_some_and(|ms| (least..=most).contains(&ms))
            }
            Self::Count(least, most) => {
                parse_count(value).is_some_and(|count| (least..=most).contains(&count))
            }
        }
    }

    fn described(self) -> String {
        match self {
            Self::DurationMs(least, most) => {
                let (least, most) = (format_duration_ms(least), format_duration_ms(most));
                format!("a duration such as 90s, 12h or 30d, from {least} to {most}")
            }
            Self::Count(least, most) => format!("a whole number from {least} to {most}"),
        }
    }
}

const SECOND_MS: u64 = 1000;
const DAY_MS: u64 = 24 * 60 * 60 * SECOND_MS;
const YEAR_MS: u64 = 365 * DAY_MS;

/// The setting that data groups are told as well ([`super::command::DataStep::JournalHorizonSet`]).
pub const JOURNAL_HORIZON: &str = "journal-horizon";

/// How long tombstones are kept in a group that was told nothing: the default of [`JOURNAL_HORIZON`].
pub const JOURNAL_HORIZON_DEFAULT_MS: u64 = 30 * DAY_MS;

/// Over how many nodes each volume must be spread.
pub const VOLUME_NODES_MIN: &str = "volume-nodes-min";

/// Over how many racks each volume must be spread.
pub const VOLUME_RACKS_MIN: &str = "volume-racks-min";

/// How many uploads an account may have under way.
const ACCOUNT_UPLOADS_MAX: &str = "account-uploads-max";

/// How many chunks their lists may have.
const ACCOUNT_UPLOAD_CHUNKS_MAX: &str = "account-upload-chunks-max";

/// How long small files lie in the nursery.
const NURSERY_AGE: &str = "nursery-age";

/// How many bytes of them.
const NURSERY_BYTES_MAX: &str = "nursery-bytes-max";

/// All settings, by name. Durations are written like `30d`, `90s` or `250ms`.
pub const SETTINGS: &[SettingDefinition] = &[
    SettingDefinition {
        name: ACCOUNT_UPLOAD_CHUNKS_MAX,
        default_value: "2000000",
        values: SettingValues::Count(UPLOAD_CHUNKS_MAX as u64, 1_000_000_000),
        description: "chunks that the lists of an account's uploads under way may have together",
    },
    SettingDefinition {
        name: ACCOUNT_UPLOADS_MAX,
        default_value: "16384",
        values: SettingValues::Count(1, 10_000_000),
        description: "uploads that an account may have under way",
    },
    SettingDefinition {
        name: "hold-time",
        default_value: "1d",
        values: SettingValues::DurationMs(0, YEAR_MS),
        description: "how long the shards of a buried stripe are kept before they are deleted",
    },
    SettingDefinition {
        name: JOURNAL_HORIZON,
        default_value: "30d",
        values: SettingValues::DurationMs(SECOND_MS, 10 * YEAR_MS),
        description: "how long devices that were away are told of what was deleted; after longer they list their tree anew",
    },
    SettingDefinition {
        name: "node-grace",
        default_value: "4s",
        values: SettingValues::DurationMs(SECOND_MS, DAY_MS),
        description: "how long after its last heartbeat a storage node counts as up",
    },
    SettingDefinition {
        name: NURSERY_AGE,
        default_value: "10s",
        values: SettingValues::DurationMs(0, DAY_MS),
        description: "how long small files that were put alone stay with the metadata before they are packed into stripes",
    },
    SettingDefinition {
        name: NURSERY_BYTES_MAX,
        default_value: "67108864",
        values: SettingValues::Count(0, 1 << 30),
        description: "bytes of such files in each metadata group; beyond it small files go into stripes at once",
    },
    SettingDefinition {
        name: "read-hedge",
        default_value: "500ms",
        values: SettingValues::DurationMs(1, 60 * SECOND_MS),
        description: "how long a read waits for a shard before it asks for parity as well",
    },
    SettingDefinition {
        name: "reclaim-delay",
        default_value: "30d",
        values: SettingValues::DurationMs(0, 10 * YEAR_MS),
        description: "how long a chunk stays after its last reference has gone",
    },
    SettingDefinition {
        name: "session-life",
        default_value: "7d",
        values: SettingValues::DurationMs(60 * SECOND_MS, YEAR_MS),
        description: "how long an upload session can be continued",
    },
    SettingDefinition {
        name: VOLUME_NODES_MIN,
        default_value: "1",
        values: SettingValues::Count(1, 64),
        description: "over how many storage nodes each new volume is spread, evenly, up to one for each shard; until so many are up, none is made",
    },
    SettingDefinition {
        name: VOLUME_RACKS_MIN,
        default_value: "1",
        values: SettingValues::Count(1, 64),
        description: "over how many racks each new volume is spread, evenly; until there are so many, none is made",
    },
    SettingDefinition {
        name: "write-deadline",
        default_value: "10s",
        values: SettingValues::DurationMs(100, 600 * SECOND_MS),
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
    #[error("{name} takes {takes}; not {value:?}")]
    BadValue {
        /// The setting.
        name: String,
        /// As given.
        value: String,
        /// What it takes, in words.
        takes: String,
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

/// Parses a whole number.
fn parse_count(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
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
/// For an unknown name, or a value that is not of its kind or out of range.
pub fn check(name: &str, value: &str) -> Result<&'static SettingDefinition, SettingError> {
    let definition = SETTINGS
        .iter()
        .find(|definition| definition.name == name)
        .ok_or_else(|| SettingError::Unknown { name: name.to_owned() })?;
    if !definition.values.takes(value) {
        let (name, value) = (name.to_owned(), value.to_owned());
        return Err(SettingError::BadValue { name, value, takes: definition.values.described() });
    }
    Ok(definition)
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

    fn count(&self, name: &str) -> u64 {
        self.value(name).and_then(parse_count).unwrap_or(0)
    }

    /// `account-uploads-max` and `account-upload-chunks-max`.
    #[must_use]
    pub fn open_uploads_max(&self) -> OpenUploadsMax {
        OpenUploadsMax {
            sessions: self.count(ACCOUNT_UPLOADS_MAX),
            list_entries: self.count(ACCOUNT_UPLOAD_CHUNKS_MAX),
        }
    }

    /// `nursery-age`.
    #[must_use]
    pub fn nursery_age(&self) -> Duration {
        self.duration(NURSERY_AGE)
    }

    /// `nursery-bytes-max`.
    #[must_use]
    pub fn nursery_bytes_max(&self) -> u64 {
        self.count(NURSERY_BYTES_MAX)
    }

    /// `volume-nodes-min` and `volume-racks-min`.
    #[must_use]
    pub fn volume_spread(&self) -> Spread {
        let count = |name| self.value(name).and_then(parse_count).and_then(|count| count.try_into().ok());
        let least = |name| count(name).unwrap_or(1);
        Spread { nodes_min: least(VOLUME_NODES_MIN), racks_min: least(VOLUME_RACKS_MIN) }
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
    fn counts_are_whole_numbers_in_their_range() {
        for bad in ["", "0", "-1", "+1", "1s", "65", "1.5", " 2"] {
            assert!(check(VOLUME_NODES_MIN, bad).is_err(), "{bad}");
        }
        assert!(check(VOLUME_NODES_MIN, "9").is_ok());
        let settings = Settings::new([(VOLUME_NODES_MIN.to_owned(), "9".to_owned())]);
        assert_eq!(settings.volume_spread(), Spread { nodes_min: 9, racks_min: 1 });
        assert_eq!(Settings::default().volume_spread(), Spread::ANY);
    }

    #[test]
    fn what_was_set_is_in_force() {
        let settings = Settings::new([("node-grace".to_owned(), "2m".to_owned())]);
        assert_eq!(settings.node_grace(), Duration::from_secs(120));
        assert_eq!(settings.write_deadline(), Duration::from_secs(10));
    }
}
