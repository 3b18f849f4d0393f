//! How names, paths and whatever else others have chosen are shown to people: the one place that decides which
//! characters reach a terminal as they are.
//!
//! A name may hold anything but `/` and NUL. Control characters steer a terminal, line ends forge lines, characters
//! that turn the writing direction forge what a line says, and invisible ones make two names look alike. All of these
//! are written as escapes. Programs that need a name exactly take `--json`, or `-0` where there is one.

use std::borrow::Cow;
use std::path::Path;

/// A text on one line: nothing in it changes what a terminal shows beside it.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    escaped(text, |_character| false)
}

/// A text that may have several lines.
pub(crate) fn shown_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |character| character == '\n')
}

/// A local path, on one line; bytes that are not UTF-8 as `\xNN`.
pub(crate) fn shown_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut out = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        out.push_str(&shown(chunk.valid()));
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// A local path as one word of a command line that a person may copy into a shell.
pub(crate) fn shown_argument(path: &Path) -> String {
    let text = shown_path(path);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%=".contains(&byte) || !byte.is_ascii();
    if !text.is_empty() && text.bytes().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    // Most names are plain.
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    let mut characters = text.chars().peekable();
    let mut before = ' ';
    while let Some(character) = characters.next() {
        let joins = matches!(character, '\u{200c}' | '\u{200d}')
            && !before.is_ascii()
            && characters.peek().is_some_and(|after| !after.is_ascii());
        if is_kept(character) || is_plain(character) || joins {
            out.push(character);
        } else {
            out.extend(character.escape_default());
        }
        before = character;
    }
    Cow::Owned(out)
}

/// Whether a character shows as itself, in its place, and does nothing else. Joiners are judged by what is around
/// them: between letters and signs that are not ASCII they make words and emoji what they are.
fn is_plain(character: char) -> bool {
    match character {
        '\u{2028}' | '\u{2029}' => false,
        '\'' | '"' | '\\' => true,
        _ if character.is_control() => false,
        _ if character.is_whitespace() => true,
        _ => {
            // The standard library knows what can be printed. A mark that joins what is before it is asked for with
            // something before it.
            let mut text = [b'x', 0, 0, 0, 0];
            let bytes = 1 + character.encode_utf8(&mut text[1..]).len();
            std::str::from_utf8(&text[..bytes])
                .is_ok_and(|text| text.escape_debug().skip(1).eq(std::iter::once(character)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn what_would_steer_a_terminal_is_escaped() {
        let bad = [
            '\u{0}',
            '\u{7}',
            '\u{8}',
            '\t',
            '\n',
            '\r',
            '\u{1b}',
            '\u{7f}',
            '\u{80}',
            '\u{85}',
            '\u{9b}',
            '\u{9d}',
            '\u{ad}',
            '\u{61c}',
            '\u{180e}',
            '\u{200b}',
            '\u{200c}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202b}',
            '\u{202c}',
            '\u{202d}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2067}',
            '\u{2068}',
            '\u{2069}',
            '\u{206a}',
            '\u{206f}',
            '\u{feff}',
            '\u{fff9}',
            '\u{fffb}',
            '\u{e0001}',
            '\u{e0041}',
            '\u{10ffff}',
        ];
        for character in bad {
            let name = format!("a{character}b");
            let text = shown(&name);
            assert!(!text.contains(character), "{character:?} is shown raw");
            assert_eq!(text, format!("a{}b", character.escape_default()));
        }
        assert_eq!(shown("x\u{1b}[2Jy"), "x\\u{1b}[2Jy");
        assert_eq!(shown_lines("a\nb\r\u{1b}c"), "a\nb\\r\\u{1b}c");
    }

    #[test]
    fn names_as_people_give_them_are_shown_as_they_are() {
        for name in [
            "report.txt",
            "it's \"quoted\" \\ so",
            "naïve-é-日本語-😀",
            "e\u{301}-decomposed",
            "\u{301}at the start",
            "a\u{a0}b\u{202f}c\u{3000}d",
            "عربي עברית",
            "می\u{200c}خواهم",
            "👨\u{200d}👩\u{200d}👧",
            "❤\u{fe0f}",
            "~$ %2f",
        ] {
            assert_eq!(shown(name), name);
        }
    }

    #[test]
    fn paths_show_their_bytes_and_can_be_copied() {
        let path = |bytes: &'static [u8]| Path::new(OsStr::from_bytes(bytes));
        assert_eq!(shown_path(path(b"/a/\xff\xe4b\x1b")), "/a/\\xff\\xe4b\\u{1b}");
        assert_eq!(shown_argument(path(b"/a/b-c.d")), "/a/b-c.d");
        assert_eq!(shown_argument(path(b"/a b/it's")), r"'/a b/it'\''s'");
    }
}
