//! What is ignored without a rule: only what nobody means to keep, for certain. A name alone is enough only where a
//! system or program reserves it; what an editor or an office program leaves is known by lying beside its file.
//!
//! Names that people use as well (`4913`, `x.part`, `notes~`, `lu1.tmp`) are kept in sync: a rule can ignore them.

use crate::local::disk::ObjectKind;

/// Random letters at the end of the names of files that `keepstone get` is writing.
const PARTIAL_TAG: &str = ".keepstone-";

/// What a thing is, if it is ignored without a rule. `beside`: whether something of a name is in the same folder.
pub(super) fn what(name: &str, kind: ObjectKind, beside: &dyn Fn(&str) -> bool) -> Option<&'static str> {
    match kind {
        ObjectKind::Folder => folder(name),
        ObjectKind::Symlink => lock_link(name, beside),
        ObjectKind::File => system_file(name).or_else(|| beside_its_file(name, beside)),
        ObjectKind::Special | ObjectKind::MountPoint => None,
    }
}

fn folder(name: &str) -> Option<&'static str> {
    let what = match name {
        ".AppleDouble" | ".Spotlight-V100" | ".Trashes" | ".fseventsd" => "a folder of macOS",
        "$RECYCLE.BIN" | "System Volume Information" => "a folder of Windows",
        _ if is_all(name.strip_prefix(".Trash-")?, 1, |byte| byte.is_ascii_digit()) => "a desktop's trash",
        _ => return None,
    };
    Some(what)
}

/// Emacs locks a file by a symlink that leads nowhere.
fn lock_link(name: &str, beside: &dyn Fn(&str) -> bool) -> Option<&'static str> {
    name.strip_prefix(".#").is_some_and(beside).then_some("an editor's lock")
}

fn system_file(name: &str) -> Option<&'static str> {
    let is_hex = |byte: u8| byte.is_ascii_hexdigit();
    let what = match name {
        ".DS_Store" | "Icon\r" => "a file of the macOS Finder",
        "Thumbs.db" | "ehthumbs.db" | "desktop.ini" => "a file of the Windows Explorer",
        _ if has_tail(name, ".nfs", 16, is_hex) => "deleted, and still open on NFS",
        _ if has_tail(name, ".fuse_hidden", 16, is_hex) => "deleted, and still open on FUSE",
        _ if has_tail(name, ".goutputstream-", 6, |byte| byte.is_ascii_alphanumeric()) => {
            "a file that a desktop program is writing"
        }
        _ if has_tail(name, "~WRL", 4, |byte| byte.is_ascii_digit())
            || has_tail(name, "~WRD", 4, |byte| byte.is_ascii_digit()) =>
        {
            "a temporary file of Word"
        }
        _ if is_partial(name) => "a file that `keepstone get` is writing",
        _ => return None,
    };
    Some(what)
}

/// `.NAME.keepstone-` and eight hexadecimal digits.
fn is_partial(name: &str) -> bool {
    name.starts_with('.')
        && name.rsplit_once(PARTIAL_TAG).is_some_and(|(before, tag)| {
            before.len() > 1 && tag.len() == 8 && tag.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

fn beside_its_file(name: &str, beside: &dyn Fn(&str) -> bool) -> Option<&'static str> {
    if let Some(inner) = name.strip_prefix(".~lock.").and_then(|rest| rest.strip_suffix('#')) {
        return beside(inner).then_some("a lock of LibreOffice");
    }
    if let Some(rest) = name.strip_prefix("~$") {
        return is_office_owner(rest, beside).then_some("a lock of an office program");
    }
    if let Some(inner) = name.strip_prefix("._") {
        return beside(inner).then_some("what macOS keeps beside a file");
    }
    if let Some(inner) = name.strip_prefix(".#") {
        return beside(inner).then_some("an editor's lock");
    }
    if let Some(inner) = name.strip_prefix('#').and_then(|rest| rest.strip_suffix('#')) {
        return beside(inner).then_some("what an editor saves by itself");
    }
    if let Some(stem) = name.strip_suffix(".laccdb") {
        return beside(&format!("{stem}.accdb")).then_some("a lock of Access");
    }
    let hidden = name.strip_prefix('.')?;
    if let Some(inner) = hidden.strip_suffix(".kate-swp") {
        return beside(inner).then_some("a swap file of an editor");
    }
    let (inner, end) = hidden.rsplit_once('.')?;
    let is_swap =
        end.len() == 3 && end.starts_with("sw") && matches!(end.as_bytes().last(), Some(b'a'..=b'p'));
    (is_swap && beside(inner)).then_some("a swap file of an editor")
}

/// Office puts `~$` before the name, or for longer names in the place of its first one or two letters. Which those were
/// cannot be told: any file beside it with such a name does.
fn is_office_owner(rest: &str, beside: &dyn Fn(&str) -> bool) -> bool {
    if rest.is_empty() {
        return false;
    }
    // `beside` answers for a name that ends so as well: see [`super::Beside`].
    beside(rest) || beside(&format!("{}{rest}", super::ANY_TWO))
}

fn has_tail(name: &str, prefix: &str, length_min: usize, is_right: impl Fn(u8) -> bool) -> bool {
    let Some(tail) = name.strip_prefix(prefix) else { return false };
    let tail = if prefix.starts_with("~WR") { tail.strip_suffix(".tmp").unwrap_or("") } else { tail };
    is_all(tail, length_min, is_right)
}

fn is_all(text: &str, length_min: usize, is_right: impl Fn(u8) -> bool) -> bool {
    text.len() >= length_min && text.bytes().all(is_right)
}
