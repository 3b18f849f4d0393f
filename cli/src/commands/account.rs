//! `login`, `whoami`, `devices`.

use std::process::ExitCode;

use bytes::Bytes;
use client::connection::{ApiClient, ConnectOptions, normalize_endpoint};
use client::profile::{Ca, Profile};
use proto::v1;
use serde_json::json;

use super::{connect, profile_path, read_password};
use crate::args::{DevicesCommand, Global, Login};
use crate::format;
use crate::output::Output;
use crate::shown::{shown, shown_path};
use crate::table::{Side, Table};

pub(crate) async fn login(global: &Global, arguments: Login, output: &Output) -> anyhow::Result<ExitCode> {
    let ca = Ca::read(&arguments.ca)?;
    let endpoint = normalize_endpoint(&arguments.endpoint);
    let ca_pem = String::from(ca.clone()).into_bytes();
    let options = ConnectOptions { endpoint: endpoint.clone(), ca_pem, token: None };
    let api = ApiClient::connect(&options).await?;
    let password = read_password(arguments.password_stdin, false).await?;
    let device_name =
        arguments.device.or_else(crate::pki::host_name).unwrap_or_else(|| "keepstone".to_owned());
    let signed_in = api.sign_in(&arguments.email, &password, &device_name).await?;
    let profile = Profile {
        endpoint,
        ca,
        token: signed_in.token,
        account: hex::encode(&signed_in.account),
        device: hex::encode(&signed_in.device),
    };
    let path = match arguments.out {
        Some(path) => path,
        None => profile_path(global)?,
    };
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        crate::files::make_directory(directory)?;
    }
    profile.save(&path)?;
    let document = json!({
        "profile": path, "endpoint": profile.endpoint, "account": profile.account,
        "device": profile.device, "device_name": device_name,
    });
    output.print(&document, || {
        format!("Signed in as {}; the profile is {}", shown(&arguments.email), shown_path(&path))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What `entries_bytes` are.
const ENTRIES_NOTE: &str = "some hundred bytes for each file, folder, symlink and version";

pub(crate) async fn who_am_i(global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connect(global).await?;
    let me = api.who_am_i().await?;
    let document = json!({
        "endpoint": api.endpoint(), "account": hex::encode(&me.account), "email": me.email, "name": me.name,
        "admin": me.admin, "device": hex::encode(&me.device), "device_name": me.device_name,
        "quota_bytes": me.quota_bytes, "used_bytes": me.used_bytes, "entries_bytes": me.entries_bytes,
        "open_uploads_bytes": me.open_uploads_bytes,
    });
    output.print(&document, || {
        let mut table = Table::new(&[("", Side::Left), ("", Side::Left)]);
        let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
        row("email", me.email.clone());
        row("name", me.name.clone());
        row("account", hex::encode(&me.account));
        row("administrator", if me.admin { "yes" } else { "no" }.to_owned());
        row("device", format!("{} ({})", me.device_name, hex::encode(&me.device)));
        row("gateway", api.endpoint().to_owned());
        let quota = match me.quota_bytes {
            0 => "no limit".to_owned(),
            quota => format!("of {}", format::size(quota)),
        };
        row("used", format!("{}, {quota}", format::size(me.used_bytes)));
        row("for entries", format!("{}, {ENTRIES_NOTE}", format::size(me.entries_bytes)));
        row("for uploads", format!("{}, by those under way", format::size(me.open_uploads_bytes)));
        table.render()
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn devices(
    global: &Global,
    command: DevicesCommand,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    match command {
        DevicesCommand::Ls => list_devices(global, output).await,
        DevicesCommand::Revoke { device } => {
            let api = connect(global).await?;
            let id = device_called(&api.list_devices().await?, &device)?;
            api.revoke_device(id.clone()).await?;
            let id = hex::encode(id);
            output.print(&json!({ "revoked": id }), || format!("Revoked {id}"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The id of the device that is called so by its id or its name. Several may have one name: of these only one that is
/// still in use is meant, if there is just one.
fn device_called(devices: &[v1::Device], called: &str) -> anyhow::Result<Bytes> {
    if let Some(device) = devices.iter().find(|device| hex::encode(&device.device) == called.to_lowercase()) {
        return Ok(device.device.clone());
    }
    let named: Vec<_> = devices.iter().filter(|device| device.name == called).collect();
    let active: Vec<_> = named.iter().copied().filter(|device| device.revoked_ms == 0).collect();
    match (&active[..], &named[..]) {
        ([device], _) | ([], [device]) => Ok(device.device.clone()),
        (_, []) => anyhow::bail!("no device is called {called:?}; `keepstone devices ls` shows them"),
        _ => {
            let ids: Vec<String> = named.iter().map(|device| hex::encode(&device.device)).collect();
            anyhow::bail!("several devices are called {called:?}: name one by its id: {}", ids.join(", "))
        }
    }
}

async fn list_devices(global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let devices = connect(global).await?.list_devices().await?;
    let rows: Vec<_> = devices
        .iter()
        .map(|device| {
            json!({
                "device": hex::encode(&device.device), "name": device.name,
                "created": format::json_time_ms(device.created_ms),
                "revoked": format::json_time_ms(device.revoked_ms),
            })
        })
        .collect();
    output.print(&json!({ "devices": rows }), || {
        let columns =
            [("DEVICE", Side::Left), ("SIGNED IN", Side::Left), ("STATE", Side::Left), ("NAME", Side::Left)];
        let mut table = Table::new(&columns);
        for device in &devices {
            let state = match device.revoked_ms {
                0 => "active".to_owned(),
                revoked => format!("revoked {}", format::time_ms(revoked)),
            };
            let created = format::time_ms(device.created_ms);
            table.row(vec![hex::encode(&device.device), created, state, device.name.clone()]);
        }
        table.render()
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_id_and_by_name() {
        let device = |id: u8, name: &str, revoked_ms| v1::Device {
            device: Bytes::copy_from_slice(&[id; 8]),
            name: name.to_owned(),
            revoked_ms,
            ..v1::Device::default()
        };
        let devices = [
            device(1, "laptop", 0),
            device(2, "laptop", 5),
            device(3, "phone", 0),
            device(4, "phone", 0),
            device(5, "tv", 5),
        ];
        let called = |name: &str| device_called(&devices, name).map(|id| id[0]);
        assert_eq!(called("0202020202020202").unwrap(), 2);
        assert_eq!(called("laptop").unwrap(), 1, "the other one is revoked");
        assert_eq!(called("tv").unwrap(), 5);
        let error = called("phone").unwrap_err().to_string();
        assert!(error.contains("0303030303030303") && error.contains("0404040404040404"), "{error}");
        assert!(called("0909090909090909").is_err());
    }
}
