//! Which names an entry may have.

use crate::model::NAME_BYTES_MAX;
use crate::model::command::StepError;

/// Refuses a name that no entry may have. Names are exact bytes of UTF-8: nothing is folded or normalised.
///
/// # Errors
/// [`StepError::BadName`], with why.
pub(super) fn check(name: &str) -> Result<(), StepError> {
    let why = if name.is_empty() {
        "a name cannot be empty".to_owned()
    } else if name.len() > NAME_BYTES_MAX {
        format!("a name has at most {NAME_BYTES_MAX} bytes, this one {}", name.len())
    } else if name == "." || name == ".." {
        format!("{name:?} stands for a folder and cannot be a name")
    } else if name.contains('/') {
        "a name cannot hold '/'".to_owned()
    } else if name.contains('\0') {
        "a name cannot hold a NUL byte".to_owned()
    } else {
        return Ok(());
    };
    Err(StepError::BadName { why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused_and_odd_ones_taken() {
        let long = "é".repeat(128);
        for bad in ["", ".", "..", "a/b", "/", "a\0", long.as_str()] {
            assert!(matches!(check(bad), Err(StepError::BadName { .. })), "{bad:?}");
        }
        let longest = "x".repeat(NAME_BYTES_MAX);
        for good in ["...", " ", "a\n", "\\", "CON", "a:b", "\u{202e}", longest.as_str()] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
    }
}
