//! The command line in the hands of people: names that nobody expects, the first hour, and calls that are repeated or
//! broken off.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos::client::{Client, Output, binary};
use chaos::cluster::{Cluster, Options};
use chaos::compare::assert_same;
use chaos::serial::serial;
use chaos::tree::write_random;
use chaos::wait::wait_for;
use rustix::process::{Pid, Signal, kill_process};

const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn refused(output: &Output, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(output.code == Some(1) && output.stderr.contains(word), "no {word:?}: {output:?}");
    }
    Ok(())
}

/// What people do on one cluster: each part by itself, so that all that fail are told.
type Part = fn(&Client, &Path) -> Result<()>;

#[test]
fn the_command_line_as_people_use_it() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("people")?;
    let parts: [(&str, Part); 7] = [
        ("put again", what_is_there_already_is_not_put_again),
        ("names", history_and_trash_speak_of_names),
        ("profile", a_copied_profile_works),
        ("replaced", only_files_are_replaced),
        ("stopped", a_get_that_is_stopped_leaves_nothing_and_is_completed),
        ("killed", what_a_killed_get_left_is_cleaned_and_never_put),
        ("unread", what_failed_is_said_though_nobody_reads),
    ];
    let run =
        |(name, part): (&str, Part)| part(&client, &scratch).err().map(|error| format!("{name}: {error:#}"));
    let failed: Vec<String> = parts.into_iter().filter_map(run).collect();
    ensure!(failed.is_empty(), "{failed:#?}");
    cluster.finish()
}

fn used(client: &Client) -> Result<u64> {
    client.json(&["whoami"])?["used_bytes"].as_u64().context("no used_bytes")
}

fn versions(client: &Client, path: &str) -> Result<usize> {
    Ok(client.json(&["history", path])?["versions"].as_array().context("no versions")?.len())
}

fn what_is_there_already_is_not_put_again(client: &Client, scratch: &Path) -> Result<()> {
    let tree = scratch.join("same");
    fs::create_dir_all(tree.join("below"))?;
    fs::write(tree.join("two"), "hi")?;
    fs::write(tree.join("empty"), "")?;
    symlink("two", tree.join("link"))?;
    write_random(&tree.join("below/small"), 300_000, 1)?;
    write_random(&tree.join("below/large"), 9 * MIB, 2)?;
    client.put(&[&tree], "/same")?;
    let before = used(client)?;
    let cursor = client.json(&["stat", "/same/two"])?["version"].clone();
    for _again in 0..2 {
        let report = client.put(&[&tree.join(".")], "/same")?;
        ensure!((report.files, report.bytes_sent, report.chunks_sent) == (4, 0, 0), "{report:?}");
    }
    client.put(&[&tree.join("below/large")], "/same/below/large")?;
    for path in ["/same/two", "/same/empty", "/same/below/small", "/same/below/large"] {
        ensure!(versions(client, path)? == 1, "{path} has {} versions", versions(client, path)?);
    }
    ensure!(used(client)? == before, "charged for nothing");
    // Its time and bits are kept, as the version's that is there.
    fs::File::options().write(true).open(tree.join("two"))?.set_modified(std::time::UNIX_EPOCH)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(tree.join("below/large"), mode)?;
    client.put(&[&tree.join(".")], "/same")?;
    let (two, large) = (client.json(&["stat", "/same/two"])?, client.json(&["stat", "/same/below/large"])?);
    ensure!(two["mtime_ns"] == 0 && two["version"] == cursor && large["mode"] == "0600", "{two} {large}");
    ensure!(versions(client, "/same/two")? == 1 && used(client)? == before);
    // A change is a change.
    fs::write(tree.join("two"), "ho")?;
    client.put(&[&tree.join(".")], "/same")?;
    ensure!(versions(client, "/same/two")? == 2 && client.cat("/same/two")? == b"ho");
    client.get("/same", &scratch.join("same again"))?;
    assert_same(&tree, &scratch.join("same again"))
}

fn history_and_trash_speak_of_names(client: &Client, scratch: &Path) -> Result<()> {
    let device = client.json(&["whoami"])?["device_name"].as_str().context("no device_name")?.to_owned();
    let file = scratch.join("named");
    for text in ["one", "two", "three"] {
        fs::write(&file, text)?;
        client.put(&[&file], "/named")?;
        client.ok(&["rm", "/named"])?;
    }
    client.put(&[&file], "/named")?;
    let history = client.ok(&["history", "/named"])?.stdout;
    ensure!(history.contains(&device), "no {device:?}: {history}");
    ensure!(client.json(&["history", "/named"])?["versions"][0]["device_name"] == device.as_str());
    client.ok(&["rm", "/named"])?;

    let ids = |client: &Client| -> Result<Vec<u64>> {
        let trash = client.json(&["trash", "ls"])?;
        let items = trash["items"].as_array().context("no items")?;
        let at = items.iter().filter(|item| item["path"] == "/named");
        Ok(at.filter_map(|item| item["trash_id"].as_u64()).collect())
    };
    let there = ids(client)?;
    ensure!(there.len() == 4, "{there:?}");
    let several = client.run(&["trash", "restore", "/named"])?;
    refused(&several, &["by its id"])?;
    ensure!(there.iter().all(|id| several.stderr.contains(&id.to_string())), "{several:?}");
    refused(&client.run(&["trash", "purge", "/named"])?, &["by its id"])?;
    for id in &there[1..] {
        client.ok(&["trash", "purge", &id.to_string()])?;
    }
    client.ok(&["trash", "restore", "/named"])?;
    ensure!(client.cat("/named")? == b"one");
    client.ok(&["rm", "/named"])?;
    client.ok(&["trash", "purge", "/named"])?;
    ensure!(ids(client)?.is_empty());
    refused(&client.run(&["trash", "restore", "/named"])?, &["trash ls"])?;
    let help = client.ok(&["--help"])?.stdout;
    ensure!(help.starts_with("Keeps your files"), "{help}");
    Ok(())
}

fn a_copied_profile_works(client: &Client, scratch: &Path) -> Result<()> {
    let copy = scratch.join("elsewhere/p.toml");
    fs::create_dir_all(scratch.join("elsewhere"))?;
    fs::copy(client.profile(), &copy)?;
    Client::new(&copy)?.ok(&["whoami"])?;
    // One of an older version, where it was made.
    let text = fs::read_to_string(client.profile())?;
    let pem = text.split("\"\"\"").nth(1).context("no certificates in the profile")?.trim_start();
    fs::write(scratch.join("elsewhere/ca.pem"), pem)?;
    let old = text.replacen(&format!("\"\"\"\n{pem}\"\"\""), "\"ca.pem\"", 1);
    ensure!(old.contains("ca = \"ca.pem\""), "{old}");
    fs::write(&copy, old)?;
    Client::new(&copy)?.ok(&["whoami"])?;
    fs::remove_file(scratch.join("elsewhere/ca.pem"))?;
    refused(&Client::new(&copy)?.run(&["whoami"])?, &["copied without the CA"])
}

fn only_files_are_replaced(client: &Client, scratch: &Path) -> Result<()> {
    let (file, at) = (scratch.join("file"), |name: &str| scratch.join("odd").join(name));
    fs::write(&file, "bytes")?;
    client.put(&[&file], "/f")?;
    fs::create_dir_all(scratch.join("odd"))?;
    fs::write(at("outside"), "outside")?;
    symlink("outside", at("link"))?;
    symlink("nowhere", at("dangling"))?;
    let _socket = std::os::unix::net::UnixListener::bind(at("socket"))?;
    let get = |name: &str, more: &[&str]| -> Result<Output> {
        let path = at(name);
        let mut arguments = vec!["get", "/f", path.to_str().context("UTF-8")?];
        arguments.extend(more);
        client.run(&arguments)
    };
    for (name, what) in [("link", "symlink"), ("dangling", "symlink"), ("socket", "socket")] {
        for more in [&[][..], &["--overwrite"]] {
            refused(&get(name, more)?, &[name, what])?;
        }
    }
    ensure!(at("link").is_symlink() && fs::read(at("outside"))? == b"outside" && !at("nowhere").exists());
    ensure!(fs::symlink_metadata(at("socket"))?.file_type().is_socket());
    // A pipe is written into.
    ensure!(Command::new("mkfifo").arg(at("pipe")).status()?.success());
    let reader = {
        let pipe = at("pipe");
        std::thread::spawn(move || fs::read(pipe))
    };
    get("pipe", &["--overwrite"])?.success()?;
    ensure!(reader.join().ok().context("the reader panicked")?? == b"bytes");
    ensure!(fs::symlink_metadata(at("pipe"))?.file_type().is_fifo());
    // So is standard output, by any of its names.
    for name in ["-", "/dev/stdout", "/dev/fd/1"] {
        let output = client.ok(&["get", "/f", name, "--overwrite"])?;
        ensure!(output.stdout == "bytes", "{name}: {output:?}");
    }
    ensure!(fs::symlink_metadata("/dev/stdout")?.is_symlink());
    client.ok(&["get", "/f", "/dev/null", "--overwrite"])?;
    ensure!(fs::symlink_metadata("/dev/null")?.file_type().is_char_device());
    // In a tree: what is in the way is named, the rest arrives, and nothing is written beyond a symlink.
    let tree = scratch.join("tree");
    fs::create_dir_all(tree.join("sub"))?;
    for name in ["link", "pipe", "plain", "sub/inner"] {
        fs::write(tree.join(name), "new")?;
    }
    client.put(&[&tree], "/tree")?;
    fs::create_dir_all(at("outer"))?;
    symlink("../outer", at("sub"))?;
    let all = client.run(&["get", "/tree", at("").to_str().context("UTF-8")?, "--overwrite"])?;
    ensure!(all.code == Some(0), "{all:?}");
    let into = at("tree");
    fs::remove_dir_all(into.join("sub"))?;
    symlink("../outer", into.join("sub"))?;
    fs::remove_file(into.join("link"))?;
    symlink("../outside", into.join("link"))?;
    fs::write(into.join("plain"), "old")?;
    let all = client.run(&["get", "/tree", at("").to_str().context("UTF-8")?, "--overwrite"])?;
    refused(&all, &["/tree/link", "symlink", "/tree/sub"])?;
    ensure!(fs::read(into.join("plain"))? == b"new" && fs::read(at("outside"))? == b"outside");
    ensure!(fs::read_dir(at("outer"))?.next().is_none(), "written beyond a symlink");
    // Other commands that write a file.
    let login = client.run(&["login", "localhost:1", "--email", "a@b", "--ca", "/dev/null"])?;
    refused(&login, &["no certificate"])
}

/// How many files `get` has unfinished in a folder.
fn unfinished(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in walkdir::WalkDir::new(folder) {
        count += usize::from(entry?.file_name().to_string_lossy().contains(".keepstone-"));
    }
    Ok(count)
}

fn a_get_that_is_stopped_leaves_nothing_and_is_completed(client: &Client, scratch: &Path) -> Result<()> {
    let tree = scratch.join("many");
    fs::create_dir_all(tree.join("sub"))?;
    for number in 0..12 {
        write_random(&tree.join(format!("sub/{number}")), 12 * MIB, 100 + number)?;
        fs::write(tree.join(format!("small-{number}")), format!("small {number}"))?;
    }
    client.put(&[&tree], "/many")?;
    for (round, signal) in [Signal::INT, Signal::TERM].into_iter().enumerate() {
        let back = scratch.join(format!("back-{round}"));
        let mut child = Command::new(binary()?)
            .arg("--profile")
            .arg(client.profile())
            .args(["get", "/many", "--json"])
            .arg(&back)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // It has begun with the large files, and not ended.
        wait_for("the first large file", DEADLINE, || {
            let some = fs::read_dir(back.join("sub")).is_ok_and(|mut files| files.next().is_some());
            Ok((some || child.try_wait()?.is_some()).then_some(()))
        })?;
        kill_process(Pid::from_child(&child), signal)?;
        let output = child.wait_with_output()?;
        ensure!(output.status.code() == Some(1), "not stopped: {output:?}");
        ensure!(String::from_utf8_lossy(&output.stderr).contains("stopped"), "{output:?}");
        ensure!(unfinished(&back)? == 0, "partial files are left");
        let there =
            walkdir::WalkDir::new(&back).into_iter().flatten().filter(|entry| entry.file_type().is_file());
        let there = there.count() as u64;
        // Got to the same place again, it is completed: only what is missing is fetched.
        let back_text = back.to_str().context("UTF-8")?;
        let report = client.json(&["get", "/many/.", back_text])?;
        ensure!(report["unchanged"] == there && report["files"] == 24, "{report} with {there} there");
        for name in ["sub/0", "small-0"] {
            assert_same(&tree.join(name), &back.join(name))?;
        }
        client.json(&["get", "/many/.", back_text, "--overwrite"])?;
        ensure!(client.json(&["get", "/many/.", back_text, "--overwrite"])?["unchanged"] == 24);
    }
    Ok(())
}

fn what_a_killed_get_left_is_cleaned_and_never_put(client: &Client, scratch: &Path) -> Result<()> {
    let into = scratch.join("killed");
    fs::create_dir_all(into.join("many/sub"))?;
    // As a killed one leaves it where files cannot be nameless.
    let (left, held) = (into.join("many/sub/.0.keepstone-01ab23cd"), into.join("many/.x.keepstone-01ab23cd"));
    fs::write(&left, "half")?;
    fs::write(&held, "half")?;
    let report = client.put(&[&into], "/killed")?;
    ensure!(report.files == 0 && !client.exists("/killed/many/sub/.0.keepstone-01ab23cd")?, "{report:?}");
    let lock = fs::File::open(&held)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    client.ok(&["get", "/many", into.to_str().context("UTF-8")?])?;
    ensure!(!left.exists() && held.exists(), "what somebody holds stays, what nobody does goes");
    drop(lock);
    client.ok(&["get", "/many/sub/1", into.join("one").to_str().context("UTF-8")?])?;
    client.ok(&["get", "/many", into.to_str().context("UTF-8")?])?;
    ensure!(unfinished(&into)? == 0);
    Ok(())
}

/// Runs a command whose standard output goes where nobody reads it, or where nothing can be written.
fn run_into(client: &Client, arguments: &[&str], stdout: Stdio) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.arg("--profile").arg(client.profile()).args(arguments).env_remove("KEEPSTONE_LOG");
    let output = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).output()?;
    Ok(Output {
        code: output.status.code(),
        stdout: String::new(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        elapsed: Duration::ZERO,
        resident_bytes_peak: 0,
    })
}

fn nobody_reads() -> Result<Stdio> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok(writer.into())
}

fn what_failed_is_said_though_nobody_reads(client: &Client, scratch: &Path) -> Result<()> {
    let (good, missing, back) = (scratch.join("good"), scratch.join("missing"), scratch.join("unread"));
    fs::create_dir_all(&back)?;
    fs::write(back.join("good"), "in the way")?;
    write_random(&good, 3 * MIB, 7)?;
    let pipe = back.join("pipe");
    let text = |path: &Path| path.to_str().map(str::to_owned).context("UTF-8");
    let (good, missing, back, pipe_text) = (text(&good)?, text(&missing)?, text(&back)?, text(&pipe)?);
    client.ok(&["mkdir", "/unread"])?;
    client.ok(&["put", &good, "/unread"])?;
    let failing: [(&[&str], &str); 6] = [
        (&["put", &good, &missing, "/unread"], "missing"),
        (&["get", "/unread/good", &back], "good"),
        (&["rm", "/unread/none"], "/unread/none"),
        (&["mv", "/unread/none", "/unread/new"], "/unread/none"),
        (&["mkdir", "/unread"], "/unread"),
        (&["stat", "/unread/none"], "keepstone: "),
    ];
    for (arguments, word) in failing {
        for arguments in [arguments.to_vec(), [arguments, &["--json"]].concat()] {
            refused(&run_into(client, &arguments, nobody_reads()?)?, &[word])?;
            let full = fs::File::options().write(true).open("/dev/full")?;
            refused(&run_into(client, &arguments, full.into())?, &[word])?;
        }
    }
    let well: [&[&str]; 5] = [
        &["put", &good, "/unread"],
        &["stat", "/unread/good"],
        &["ls", "-R", "/unread"],
        &["cat", "/unread/good"],
        &["get", "/unread/good", "-"],
    ];
    for arguments in well {
        let output = run_into(client, arguments, nobody_reads()?)?;
        ensure!(output.code == Some(0) && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
    // Into a pipe, all is to go.
    ensure!(Command::new("mkfifo").arg(&pipe).status()?.success());
    let reader = std::thread::spawn(move || {
        let mut pipe = fs::File::open(pipe)?;
        std::io::Read::read_exact(&mut pipe, &mut [0; 10])
    });
    refused(&client.run(&["get", "/unread/good", &pipe_text])?, &["left before all of it"])?;
    reader.join().ok().context("the reader panicked")??;
    Ok(())
}

/// Names that would steer a terminal, forge lines, or hide.
const HOSTILE: [&str; 7] = [
    "esc\u{1b}[2J\u{1b}]0;title\u{7}",
    "line\n-rw-r--r-- 1 forged",
    "return\rover",
    "c1\u{9b}31m\u{85}",
    "bidi\u{202e}gpj.exe\u{2066}",
    "zero\u{200b}width\u{feff}",
    "del\u{7f}\u{8}",
];

/// Whether a text has nothing in it but what shows as itself, and line ends.
fn ensure_plain(what: &str, bytes: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(bytes).with_context(|| format!("{what}: not UTF-8"))?;
    let bad = |character: &char| {
        (character.is_control() && *character != '\n')
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let found: Vec<char> = text.chars().filter(bad).collect();
    ensure!(found.is_empty(), "{what}: {found:?} in {text:?}");
    ensure!(
        !text.lines().any(|line| line.starts_with("-rw-r--r-- 1 forged")),
        "{what}: a forged line in {text:?}"
    );
    Ok(())
}

/// The commands below a group of them, or all, by its help.
fn listed(group: &[&str]) -> Result<BTreeSet<String>> {
    let output = Command::new(binary()?).args(group).arg("--help").output()?;
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        // Two spaces: further lines of a description are deeper.
        let line = line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?;
        line.split_whitespace().next().map(str::to_owned)
    });
    Ok(names.filter(|name| name != "help").map(|name| [group, &[&name]].concat().join(" ")).collect())
}

/// Commands that show nothing of what others have named: of a whole cluster, or of this machine.
const NAMELESS: [&str; 20] = [
    "up",
    "admin account",
    "admin status",
    "admin scrub",
    "admin settings",
    "cluster init",
    "cluster bootstrap",
    "meta",
    "storage",
    "gateway",
    "completions",
    "man",
    "sync daemon",
    "sync start",
    "sync stop",
    "sync unit",
    "sync rescan",
    "sync confirm",
    "sync undelete",
    // `sync_ignored` looks at it.
    "sync ls",
];

/// Runs every command with an odd name of a file, a folder and nothing that is there.
fn walk_hostile(
    name: &str,
    directory: &Path,
    back: &Path,
    run: &mut impl FnMut(&[&str], Option<i32>) -> Result<Output>,
) -> Result<()> {
    let (folder, file) = (format!("/h/{name}"), format!("/h/{name}/{name}"));
    let missing = format!("/h/{name} is not there");
    for path in [&folder, &file, &missing] {
        run(&["ls", path], None)?;
        run(&["ls", "-l", path], None)?;
        run(&["stat", path], None)?;
        run(&["history", path], None)?;
        run(&["versions", "ls", path], None)?;
        run(&["versions", "rm", path, "--keep", "1"], None)?;
        run(&["restore", path, "--version", "1"], None)?;
        if *path != missing {
            run(&["mkdir", path], Some(1))?;
        }
        run(&["get", path, back.to_str().context("UTF-8")?], None)?;
    }
    run(&["put", &missing, "/h"], Some(1))?;
    run(&["cat", &folder], Some(1))?;
    run(&["cat", &missing], Some(1))?;
    run(&["mv", &missing, "/x"], Some(1))?;
    run(&["cp", &missing, "/x"], Some(1))?;
    run(&["cp", &file, &file], Some(1))?;
    run(&["rm", &folder], Some(1))?;
    run(&["trash", "restore", &missing], Some(1))?;
    run(&["trash", "purge", &missing], Some(1))?;
    run(&["devices", "revoke", name], Some(1))?;
    let directory = directory.to_str().context("UTF-8")?;
    for command in ["run", "add", "remove", "status", "log", "pause", "resume", "limits"] {
        let more: &[&str] = if command == "run" { &["--once", "--remote", &missing] } else { &[] };
        run(&[&["sync", command, directory], more].concat(), None)?;
    }
    for command in ["exclude", "include"] {
        run(&["sync", command, directory, name], None)?;
    }
    run(&["sync", "remove", directory], None)?;
    run(&["login", "127.0.0.1:1", "--email", name, "--ca", directory], Some(1))?;
    run(&["ls", &format!("--{name}")], Some(2))?;
    Ok(())
}

#[test]
fn no_name_does_anything_to_a_terminal_and_programs_get_it_exactly() -> Result<()> {
    let _serial = serial();
    let cluster = Cluster::start(&Options::default())?;
    let client = cluster.client()?;
    let scratch = cluster.scratch("hostile")?;
    let local = scratch.join("local");
    for name in HOSTILE {
        fs::create_dir_all(local.join(name))?;
        fs::write(local.join(name).join(name), name)?;
        symlink(name, local.join(format!("link {name}")))?;
    }
    let mut walked = BTreeSet::new();
    let mut run = |arguments: &[&str], code: Option<i32>| -> Result<Output> {
        let output = client.run(arguments)?;
        ensure!(code.is_none() || output.code == code, "{arguments:?}: {output:?}");
        ensure_plain(&format!("{arguments:?}"), output.stdout.as_bytes())?;
        ensure_plain(&format!("{arguments:?}, errors"), output.stderr.as_bytes())?;
        // With JSON, standard error is for people too.
        let json = client.run(&[arguments, &["--json"]].concat())?;
        ensure_plain(&format!("{arguments:?} --json, errors"), json.stderr.as_bytes())?;
        for length in 1..=2 {
            walked.insert(arguments[..length.min(arguments.len())].join(" "));
        }
        Ok(output)
    };
    let local_text = local.to_str().context("UTF-8")?;
    run(&["put", local_text, "/h"], Some(0))?;
    for name in HOSTILE {
        walk_hostile(name, &local.join(name), &scratch.join("back").join(name), &mut run)?;
    }
    run(&["ls", "-R", "/"], Some(0))?;
    run(&["whoami"], Some(0))?;
    run(&["devices", "ls"], Some(0))?;
    // Exactly, for programs.
    let json = client.json(&["ls", "/h"])?;
    let names: BTreeSet<&str> = json["entries"]
        .as_array()
        .context("no entries")?
        .iter()
        .filter_map(|entry| entry["name"].as_str())
        .collect();
    ensure!(HOSTILE.iter().all(|name| names.contains(name)), "{names:?}");
    let exact = client.ok(&["ls", "-0", "/h"])?.stdout;
    ensure!(exact.split('\0').filter(|name| !name.is_empty()).collect::<BTreeSet<_>>() == names, "{exact:?}");
    let exact = client.ok(&["ls", "-R0", "/h"])?.stdout;
    ensure!(
        HOSTILE.iter().all(|name| exact.split('\0').any(|path| path == format!("/h/{name}/{name}"))),
        "{exact:?}"
    );
    for name in HOSTILE {
        run(&["rm", "-r", &format!("/h/{name}")], Some(0))?;
    }
    run(&["trash", "ls"], Some(0))?;
    for name in HOSTILE {
        run(&["trash", "restore", &format!("/h/{name}")], Some(0))?;
    }
    // Whatever commands there are, they are above, or show no names.
    let mut all = listed(&[])?;
    for group in ["trash", "versions", "sync", "devices", "admin", "cluster"] {
        ensure!(all.remove(group), "{group} is no command");
        all.extend(listed(&[group])?);
    }
    walked.extend(NAMELESS.map(str::to_owned));
    let forgotten: Vec<_> = all.difference(&walked).collect();
    ensure!(forgotten.is_empty(), "nobody looks at what these say of odd names: {forgotten:?}");
    cluster.finish()
}

#[test]
fn a_first_start_says_what_matters_and_nothing_else() -> Result<()> {
    let _serial = serial();
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("it's here");
    let log = directory.path().join("errors");
    let mut up = Command::new(binary()?)
        .args(["up", "--listen", "127.0.0.1:0", "--data"])
        .arg(&data)
        .env_remove("KEEPSTONE_LOG")
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
        .spawn()?;
    let ready = wait_for("the cluster", DEADLINE, || {
        ensure!(up.try_wait()?.is_none(), "up ended: {}", fs::read_to_string(&log)?);
        Ok(data.join("cluster.json").exists().then_some(()))
    });
    let ended = kill_process(Pid::from_child(&up), Signal::TERM);
    ready?;
    ended?;
    ensure!(up.wait()?.success());
    let told = fs::read_to_string(&log)?;
    ensure!(told.lines().count() == 1 && told.starts_with("making a new cluster"), "{told}");
    Ok(())
}
