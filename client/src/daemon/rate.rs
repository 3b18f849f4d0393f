//! Bandwidth limits as people write them: `2M`, `500 KiB/s`, `auto`, `unlimited`.

use crate::sync::config::Rate;

/// The word for no limit.
const UNLIMITED: &str = "unlimited";
/// The word for a limit that is measured.
const AUTO: &str = "auto";
const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];

/// Not a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a rate in bytes per second, such as 500K or 2M; or `auto`; or `unlimited`")]
pub struct NotARate;

/// Reads a rate: bytes per second, with K, M, G or T (powers of 1024; `iB`, `B` and `/s` may follow).
///
/// # Errors
/// If it is none.
pub fn parse(text: &str) -> Result<Rate, NotARate> {
    let text = text.trim().to_ascii_lowercase();
    match text.as_str() {
        AUTO => return Ok(Rate::Auto),
        UNLIMITED | "0" => return Ok(Rate::Unlimited),
        _ => {}
    }
    let text = text.strip_suffix("/s").unwrap_or(&text);
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(NotARate),
    };
    let number: u64 = number.parse().map_err(|_not_a_number| NotARate)?;
    match number.checked_mul(1 << shift).ok_or(NotARate)? {
        0 => Ok(Rate::Unlimited),
        bytes => Ok(Rate::BytesPerSecond(bytes)),
    }
}

/// Writes it so that [`parse`] reads the same.
#[must_use]
pub fn show(rate: Rate) -> String {
    match rate {
        Rate::Unlimited => UNLIMITED.to_owned(),
        Rate::Auto => AUTO.to_owned(),
        Rate::BytesPerSecond(mut number) => {
            let mut unit = 0;
            while number != 0 && number.is_multiple_of(1024) && unit + 1 < UNITS.len() {
                number /= 1024;
                unit += 1;
            }
            format!("{number}{}", UNITS[unit])
        }
    }
}

/// A rate in a configuration file.
pub(crate) mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::Rate;

    pub(crate) fn serialize<S: Serializer>(rate: &Rate, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::show(*rate))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Rate, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
        assert_eq!(parse("auto"), Ok(Rate::Auto));
        assert_eq!(parse("Unlimited"), Ok(Rate::Unlimited));
        assert_eq!(parse("0K"), Ok(Rate::Unlimited));
        assert_eq!(parse("1000"), Ok(Rate::BytesPerSecond(1000)));
        assert_eq!(parse("500 KiB/s"), Ok(Rate::BytesPerSecond(500 << 10)));
        assert_eq!(parse("2M"), Ok(Rate::BytesPerSecond(2 << 20)));
        for bad in ["", "fast", "-1", "1.5M", "2X", "99999999T"] {
            assert_eq!(parse(bad), Err(NotARate), "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_read_alike() {
        for bytes in [1, 1023, 1024, 1536, 3 << 20, 1 << 40, u64::MAX] {
            let rate = Rate::BytesPerSecond(bytes);
            assert_eq!(parse(&show(rate)), Ok(rate));
        }
        for rate in [Rate::Auto, Rate::Unlimited] {
            assert_eq!(parse(&show(rate)), Ok(rate));
        }
    }
}
