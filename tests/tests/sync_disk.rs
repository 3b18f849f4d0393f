//! What the local disk holds beside names and bytes: hard links, mappings, owners, ACLs and attributes, file systems with
//! one mode for all, sizes that are not true, and holes. Real devices, a real cluster.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::device::Device;
use chaos::group::Group;
use chaos::wait::wait_for;
use rustix::fs::XattrFlags;

const MIB: u64 = 1 << 20;
/// "Within seconds", with room for a busy machine; the scan of everything comes after 30 minutes.
const SECONDS: Duration = Duration::from_secs(60);

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn wait_text(device: &Device, path: &str, text: &str) -> Result<()> {
    wait_for(&format!("{path} on {} to be {text:?}", device.name), SECONDS, || {
        Ok((device.read(path).as_deref() == Some(text.as_bytes())).then_some(()))
    })
}

fn append(path: &Path, text: &str) -> Result<()> {
    Ok(fs::OpenOptions::new().append(true).open(path)?.write_all(text.as_bytes())?)
}

#[test]
fn a_change_by_one_name_arrives_under_all_names() -> Result<()> {
    let group = Group::running("links", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    a.write("x/f", "one")?;
    fs::create_dir(a.path("y"))?;
    fs::hard_link(a.path("x/f"), a.path("y/g"))?;
    a.write("alone", "one")?;
    let outside = a.home().join("outside");
    fs::hard_link(a.path("alone"), &outside)?;
    group.settle()?;
    append(&a.path("x/f"), " two")?;
    wait_text(b, "x/f", "one two")?;
    wait_text(b, "y/g", "one two")?;
    append(&a.path("y/g"), " three")?;
    wait_text(b, "x/f", "one two three")?;
    // A name that is made while all runs, and one that goes.
    fs::hard_link(a.path("x/f"), a.path("third"))?;
    fs::remove_file(a.path("y/g"))?;
    append(&a.path("third"), " four")?;
    wait_text(b, "x/f", "one two three four")?;
    wait_text(b, "third", "one two three four")?;
    // Nobody tells of what is written by a name outside of the folder.
    append(&outside, " two")?;
    wait_text(b, "alone", "one two")?;
    group.settle()?;
    // An edit from elsewhere: here each name is a file of its own, and that is said.
    b.write("x/f", "edited there")?;
    wait_text(a, "x/f", "edited there")?;
    ensure!(a.read("third").as_deref() == Some(&b"one two three four"[..]));
    let root = a.root.to_str().context("UTF-8")?;
    let log = a.sync(&["log", root])?.success()?;
    ensure!(log.stdout.contains("another name"), "{}", log.stdout);
    group.finish()?;
    Ok(())
}

/// Maps a file, and stores what it is told: text at an offset.
const MAPPER: &str = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
mapping = mmap.mmap(fd, 0)
os.close(fd)
for line in sys.stdin:
    mapping[0:len(line) - 1] = line[:-1].encode()
    print('stored', flush=True)
";

struct Mapper {
    child: Child,
    said: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Mapper {
    /// `None` without Python.
    fn start(path: &Path) -> Option<Self> {
        use std::io::BufRead as _;
        let mut command = Command::new("python3");
        command.args(["-c", MAPPER]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().ok()?;
        let said = std::io::BufReader::new(child.stdout.take()?).lines();
        Some(Self { child, said })
    }

    fn store(&mut self, text: &str) -> Result<()> {
        writeln!(self.child.stdin.as_mut().context("its input")?, "{text}")?;
        self.said.next().context("it ended")??;
        Ok(())
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

#[test]
fn what_is_stored_through_a_mapping_arrives_while_it_is_held() -> Result<()> {
    let group = Group::running("mapped", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let text = |word: &str| format!("{word}{}", "-".repeat(10_000 - word.len()));
    a.write("mapped", text("first"))?;
    a.write("other", "x")?;
    group.settle()?;
    let Some(mut mapper) = Mapper::start(&a.path("mapped")) else {
        eprintln!("skipped: no python3");
        return Ok(());
    };
    // The second store and all later ones may find the page as the one before left it: then nothing but bytes changes.
    for word in ["again", "twice", "third"] {
        mapper.store(word)?;
        wait_text(b, "mapped", &text(word))?;
    }
    mapper.store("4.")?;
    mapper.store("end..")?;
    wait_text(b, "mapped", &text("end.."))?;
    drop(mapper);
    group.finish()?;
    Ok(())
}

/// The texts of what is in a device's own trash under that name.
fn trashed(device: &Device, name: &str) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for day in fs::read_dir(device.path(".keepstone/trash"))? {
        texts.extend(fs::read_to_string(day?.path().join(name)).ok());
    }
    Ok(texts)
}

#[test]
fn what_is_written_on_into_a_file_that_was_replaced_is_in_the_trash() -> Result<()> {
    let group = Group::running("written-on", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    a.write("log", "one")?;
    a.write("closed", "one")?;
    group.settle()?;
    let mut log = fs::OpenOptions::new().append(true).open(a.path("log"))?;
    log.write_all(b" two")?;
    append(&a.path("closed"), " two")?;
    wait_text(b, "log", "one two")?;
    wait_text(b, "closed", "one two")?;
    group.settle()?;
    b.write("log", "another")?;
    b.write("closed", "another")?;
    wait_text(a, "log", "another")?;
    wait_text(a, "closed", "another")?;
    log.write_all(b" three")?;
    ensure!(trashed(a, "log")? == ["one two three"], "what was written on is gone: {:?}", trashed(a, "log")?);
    ensure!(trashed(a, "closed")?.is_empty(), "what the server has is kept for nobody");
    drop(log);
    group.finish()?;
    Ok(())
}

/// An ACL as the kernel keeps it: the owner's rights, user 65534's, the group's, the mask, others'.
fn acl(rights: [u16; 5]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for ((tag, id), right) in [(1_u16, u32::MAX), (2, 65_534), (4, u32::MAX), (16, u32::MAX), (32, u32::MAX)]
        .into_iter()
        .zip(rights)
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(right.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4_096];
    let len = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

const ACL: &str = "system.posix_acl_access";
const GROUP: u32 = 4_321;

/// Gives a file a group, an ACL and attributes; says whether this file system has them.
fn dress(path: &Path) -> Result<bool> {
    for (name, value) in [("user.tag", b"kept".to_vec()), (ACL, acl([6, 4, 4, 6, 0]))] {
        if rustix::fs::setxattr(path, name, &value, XattrFlags::empty()).is_err() {
            eprintln!("skipped: no attributes or ACLs on this file system");
            return Ok(false);
        }
    }
    if is_root() {
        std::os::unix::fs::chown(path, Some(1_234), Some(GROUP))?;
    }
    Ok(true)
}

fn assert_dressed(path: &Path, mask: u16) -> Result<()> {
    ensure!(attribute(path, "user.tag").as_deref() == Some(b"kept"), "the attribute is gone");
    let found = attribute(path, ACL);
    ensure!(found == Some(acl([6, 4, 4, mask, 0])), "the ACL is {found:?}");
    let metadata = fs::metadata(path)?;
    ensure!(!is_root() || (metadata.uid(), metadata.gid()) == (1_234, GROUP), "the owner is gone");
    Ok(())
}

#[test]
fn what_is_not_synced_outlives_an_edit_from_elsewhere() -> Result<()> {
    let group = Group::running("dressed", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    a.write("small", "one")?;
    fs::write(a.home().join("staged"), vec![1; 6 << 20])?;
    fs::rename(a.home().join("staged"), a.path("large"))?;
    for path in ["small", "large"] {
        if !dress(&a.path(path))? {
            return Ok(());
        }
    }
    // What is new comes as if it had been made here.
    fs::create_dir(a.path("shared"))?;
    rustix::fs::setxattr(
        a.path("shared"),
        "system.posix_acl_default",
        &acl([7, 6, 5, 7, 0]),
        XattrFlags::empty(),
    )?;
    if is_root() {
        std::os::unix::fs::chown(a.path("shared"), None, Some(GROUP))?;
    }
    fs::set_permissions(a.path("shared"), fs::Permissions::from_mode(0o2770))?;
    group.settle()?;
    b.write("small", "two")?;
    append(&b.path("large"), "more")?;
    b.write("shared/new", "new")?;
    b.write("shared/sub/deep", "deeper")?;
    group.settle()?;
    for path in ["small", "large"] {
        assert_dressed(&a.path(path), 6).context(path)?;
    }
    for path in ["shared/new", "shared/sub/deep"] {
        let found = attribute(&a.path(path), ACL).context("the folder's ACL did not come to the new file")?;
        ensure!(found == acl([6, 6, 5, 4, 4]), "{path} has {found:?}");
        ensure!(!is_root() || fs::metadata(a.path(path))?.gid() == GROUP, "the folder's group");
    }
    // Bits are kept in sync, and the ACL with them.
    fs::set_permissions(b.path("small"), fs::Permissions::from_mode(0o640))?;
    b.write("small", "three")?;
    group.settle()?;
    assert_dressed(&a.path("small"), 4)?;
    // `get --overwrite` replaces a file as well.
    let got = a.home().join("got");
    fs::write(&got, "before")?;
    dress(&got)?;
    group.client.ok(&["get", "/small", got.to_str().context("UTF-8")?, "--overwrite"])?;
    ensure!(fs::read(&got)? == b"three");
    assert_dressed(&got, 4)?;
    group.finish()?;
    Ok(())
}

/// A file system at `point`, unmounted at the end.
struct Mounted(PathBuf);

impl Mounted {
    fn with(point: &Path, command: &mut Command) -> Result<Option<Self>> {
        fs::create_dir_all(point)?;
        let mounted = command.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !mounted {
            eprintln!(
                "skipped: it takes root, bindfs and dosfstools (deploy/check-toolchain --tests installs them)"
            );
        }
        Ok(mounted.then(|| Self(point.to_owned())))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

/// Two devices, the second one with its folder on a file system that keeps no modes; the first one's stay.
fn modes_stay(name: &str, mount: impl FnOnce(&Path, &Path) -> Result<Option<Mounted>>) -> Result<()> {
    let mut group = Group::new(name, 2)?;
    let (below, point) = (group.devices[1].home().join("below"), group.devices[1].home().join("point"));
    let Some(mounted) = mount(&below, &point)? else { return Ok(()) };
    group.devices[1].root = point.join("root");
    fs::create_dir(&group.devices[1].root)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    let modes = [("secret", 0o600), ("program", 0o755), ("plain", 0o644)];
    for (path, mode) in modes {
        a.write(&format!("folder/{path}"), path)?;
        fs::set_permissions(a.path("folder").join(path), fs::Permissions::from_mode(mode))?;
    }
    fs::set_permissions(a.path("folder"), fs::Permissions::from_mode(0o700))?;
    let assert_modes = || -> Result<()> {
        for (path, mode) in modes.into_iter().map(|(path, mode)| (format!("folder/{path}"), mode)) {
            let found = fs::metadata(a.path(&path))?.mode() & 0o7777;
            ensure!(found == mode, "{path} has mode {found:o}");
        }
        ensure!(fs::metadata(a.path("folder"))?.mode() & 0o7777 == 0o700, "the folder's mode");
        Ok(())
    };
    for _ in 0..2 {
        for device in [a, b, b, a] {
            device.once_agreed()?;
        }
        assert_modes()?;
    }
    // An edit there takes no mode along, by whichever way an editor saves.
    b.write("folder/secret", "edited there")?;
    fs::write(b.path("folder/new"), "saved by renaming")?;
    fs::rename(b.path("folder/new"), b.path("folder/program"))?;
    b.write("made there", "new")?;
    for device in [b, a, b, a] {
        device.once_agreed()?;
    }
    assert_modes()?;
    ensure!(a.read("folder/secret").as_deref() == Some(&b"edited there"[..]));
    ensure!(a.read("folder/program").as_deref() == Some(&b"saved by renaming"[..]));
    ensure!(
        fs::metadata(a.path("made there"))?.mode() & 0o7777 == 0o644,
        "nobody asked for what the disk shows"
    );
    // What is set where it can be set arrives, also if it cannot be seen there.
    fs::set_permissions(a.path("folder/plain"), fs::Permissions::from_mode(0o640))?;
    for device in [a, b, a, b, a] {
        device.once_agreed()?;
    }
    ensure!(fs::metadata(a.path("folder/plain"))?.mode() & 0o7777 == 0o640);
    drop(mounted);
    group.end()?;
    Ok(())
}

#[test]
fn a_file_system_with_one_mode_for_all_spreads_none() -> Result<()> {
    modes_stay("bound", |below, point| {
        fs::create_dir_all(below)?;
        let mut command = Command::new("bindfs");
        command.args(["-p", "0777", "--chmod-ignore"]).arg(below).arg(point);
        Mounted::with(point, &mut command)
    })
}

#[test]
fn a_file_system_without_modes_and_with_rough_times_spreads_neither() -> Result<()> {
    modes_stay("fat", |below, point| {
        fs::File::create(below)?.set_len(64 * MIB)?;
        let made = Command::new("/usr/sbin/mkfs.vfat").arg(below).stdout(Stdio::null()).status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no dosfstools (deploy/check-toolchain --tests installs it)");
            return Ok(None);
        }
        let mut command = Command::new("mount");
        command.args(["-o", "loop,umask=000"]).arg(below).arg(point);
        Mounted::with(point, &mut command)
    })
}

#[test]
fn a_file_whose_size_is_not_true_is_stored_whole() -> Result<()> {
    let group = Group::new("untrue", 0)?;
    for path in ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        let Ok(text) = fs::read(path) else { continue };
        group.client.put(&[Path::new(path)], "/untrue")?;
        ensure!(group.client.cat("/untrue")? == text, "{path}");
    }
    // What cannot be read is named with the cause, and nothing is stored.
    let refused = group.client.run(&["put", "/proc/self/mem", "/none"])?;
    ensure!(refused.code == Some(1), "{refused:?}");
    ensure!(refused.stderr.contains("/proc/self/mem"), "{}", refused.stderr);
    ensure!(!group.client.exists("/none")?);
    group.end()
}

fn used_bytes(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

/// Some bytes at some places, and holes: also at the end, and one in a small file.
fn make_sparse(large: &Path, small: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::create(large)?;
    file.set_len(400 * MIB + 7)?;
    for at in [0, 100 * MIB + 5, 300 * MIB] {
        file.write_all_at(&[b'x'; 70_000], at)?;
    }
    let file = fs::File::create(small)?;
    file.set_len(900_000)?;
    file.write_all_at(b"one byte and some", 500_000)?;
    Ok(())
}

#[test]
fn holes_stay_holes_on_every_way() -> Result<()> {
    let mut group = Group::new("holes", 2)?;
    let [a, b] = &group.devices[..] else { anyhow::bail!("two devices") };
    make_sparse(&a.path("large"), &a.path("small"))?;
    let most = used_bytes(&a.path("large"))? + used_bytes(&a.path("small"))? + MIB;
    let check = |large: &Path, small: &Path, what: &str| -> Result<()> {
        let used = used_bytes(large)? + used_bytes(small)?;
        ensure!(used <= most, "{what}: {used} bytes on disk");
        ensure!(fs::metadata(large)?.len() == 400 * MIB + 7 && fs::metadata(small)?.len() == 900_000);
        for (one, other) in [(a.path("large"), large), (a.path("small"), small)] {
            let same = Command::new("cmp").arg(one).arg(other).status()?;
            ensure!(same.success(), "{what}: other bytes");
        }
        Ok(())
    };
    a.once_agreed()?;
    b.once_agreed()?;
    check(&b.path("large"), &b.path("small"), "sync")?;
    let got = a.home().join("got");
    group.client.get("/", &got)?;
    check(&got.join("large"), &got.join("small"), "get")?;
    // An edit of a sparse file.
    append(&a.path("large"), "more")?;
    a.once_agreed()?;
    b.once_agreed()?;
    ensure!(fs::metadata(b.path("large"))?.len() == 400 * MIB + 11);
    ensure!(used_bytes(&b.path("large"))? <= most, "{} bytes", used_bytes(&b.path("large"))?);
    group.converge()?;
    group.finish()?;
    Ok(())
}
