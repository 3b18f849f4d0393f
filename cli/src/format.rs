//! Sizes, times and modes as people read them, and entries as JSON.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use proto::v1;
use serde_json::{Value, json};

/// A size with three digits: `1.50 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut hundredths, mut unit) = (u128::from(bytes) * 100 / 1024, 0);
    while hundredths >= 102_400 && unit + 1 < UNITS.len() {
        hundredths /= 1024;
        unit += 1;
    }
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    let number = match whole {
        0..10 => format!("{whole}.{rest:02}"),
        10..100 => format!("{whole}.{}", rest / 10),
        _ => whole.to_string(),
    };
    format!("{number} {}", UNITS[unit])
}

/// As `ls -l` writes it: `drwxr-xr-x`.
pub(crate) fn mode(kind: v1::EntryKind, bits: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        v1::EntryKind::Folder => 'd',
        v1::EntryKind::Symlink => 'l',
        v1::EntryKind::File | v1::EntryKind::Unspecified => '-',
    });
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits_here = bits >> shift;
        text.push(if bits_here & 4 == 0 { '-' } else { 'r' });
        text.push(if bits_here & 2 == 0 { '-' } else { 'w' });
        text.push(match (bits_here & 1 != 0, bits & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The word for a kind in JSON.
pub(crate) fn kind(kind: v1::EntryKind) -> &'static str {
    match kind {
        v1::EntryKind::File => "file",
        v1::EntryKind::Folder => "folder",
        v1::EntryKind::Symlink => "symlink",
        v1::EntryKind::Unspecified => "unknown",
    }
}

fn of_ns(ns: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(ns)).ok()
}

fn of_ms(ms: u64) -> Option<Timestamp> {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok())
}

fn local(time: Option<Timestamp>) -> String {
    time.map_or_else(
        || "?".to_owned(),
        |time| time.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// A file's time, in this machine's time zone.
pub(crate) fn time_ns(ns: i64) -> String {
    local(of_ns(ns))
}

/// A server's time, in this machine's time zone.
pub(crate) fn time_ms(ms: u64) -> String {
    local(of_ms(ms))
}

/// A day or a time as people write it, in this machine's time zone unless it says otherwise; milliseconds since 1970.
pub(crate) fn parse_time_ms(text: &str) -> Result<u64, String> {
    let bad = || "write a day or a time such as 2026-01-31 or 2026-01-31T12:00:00Z".to_owned();
    let of_here =
        |time: DateTime| time.to_zoned_datetime(TimeZone::system()).ok().map(|zoned| zoned.timestamp());
    let time = text
        .parse::<Timestamp>()
        .ok()
        .or_else(|| text.parse::<DateTime>().ok().and_then(of_here))
        .ok_or_else(bad)?;
    u64::try_from(time.as_millisecond()).ok().filter(|time_ms| *time_ms > 0).ok_or_else(bad)
}

/// A file's time in JSON: RFC 3339, UTC, to the nanosecond.
pub(crate) fn json_time_ns(ns: i64) -> Value {
    of_ns(ns).map_or(Value::Null, |time| json!(time.to_string()))
}

/// A server's time in JSON: RFC 3339, UTC; null for "never".
pub(crate) fn json_time_ms(ms: u64) -> Value {
    if ms == 0 { Value::Null } else { of_ms(ms).map_or(Value::Null, |time| json!(time.to_string())) }
}

/// An entry in JSON. `path` is where it is, if that is known.
pub(crate) fn json_entry(entry: &v1::Entry, path: Option<&str>) -> Value {
    let mut value = json!({
        "id": entry.id,
        "name": entry.name,
        "kind": kind(entry.kind()),
        "mode": format!("{:04o}", entry.mode),
        "mtime": json_time_ns(entry.mtime_ns),
        "mtime_ns": entry.mtime_ns,
        "created": json_time_ms(entry.created_ms),
        "changed": json_time_ms(entry.changed_ms),
    });
    let path = path.or(Some(entry.path.as_str()).filter(|path| !path.is_empty()));
    if let Some(path) = path {
        value["path"] = json!(path);
    }
    match entry.kind() {
        v1::EntryKind::File => {
            value["size"] = json!(entry.size);
            value["version"] = json!(entry.version);
            value["content"] = json!(hex::encode(&entry.content));
            value["cutter"] = json!(cutter(entry.cutter()));
        }
        v1::EntryKind::Symlink => {
            value["target"] = json!(String::from_utf8_lossy(&entry.symlink_target));
        }
        v1::EntryKind::Folder | v1::EntryKind::Unspecified => {}
    }
    value
}

/// A cutter's name.
pub(crate) fn cutter(cutter: v1::Cutter) -> &'static str {
    match cutter {
        v1::Cutter::Unspecified => "unknown",
        v1::Cutter::Cdc64k => "cdc-64k",
        v1::Cutter::Cdc256k => "cdc-256k",
        v1::Cutter::Cdc1m => "cdc-1m",
        v1::Cutter::Fixed4m => "fixed-4m",
    }
}

/// `1 file`, `2 files`: of a word that takes an `s`.
pub(crate) fn count(number: u64, word: &str) -> String {
    count_of(number, word, &format!("{word}s"))
}

/// `1 entry`, `2 entries`.
pub(crate) fn count_of(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let texts = [0, 1023, 1024, 1536, 10 * 1024 + 512, 1023 * 1024, 1 << 20, 5 << 30, u64::MAX].map(size);
        assert_eq!(
            texts,
            [
                "0 B", "1023 B", "1.00 KiB", "1.50 KiB", "10.5 KiB", "1023 KiB", "1.00 MiB", "5.00 GiB",
                "15.9 EiB"
            ]
        );
    }

    #[test]
    fn modes_read_as_in_ls() {
        assert_eq!(mode(v1::EntryKind::File, 0o644), "-rw-r--r--");
        assert_eq!(mode(v1::EntryKind::Folder, 0o1777), "drwxrwxrwt");
        assert_eq!(mode(v1::EntryKind::File, 0o4611), "-rwS--x--x");
        assert_eq!(mode(v1::EntryKind::Symlink, 0o777), "lrwxrwxrwx");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|number| count(number, "file")), ["0 files", "1 file", "2 files"]);
        assert_eq!(count_of(1, "entry", "entries"), "1 entry");
        assert_eq!(count_of(2, "entry", "entries"), "2 entries");
    }

    #[test]
    fn times_in_json_are_exact() {
        assert_eq!(json_time_ns(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123456789Z");
        assert_eq!(json_time_ms(0), Value::Null);
    }
}
