//! Waits until a cluster whose roles run can be used; initialises it at its first start.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use client::connection::{ApiClient, ConnectOptions};
use client::profile::{Ca, Profile};
use engine::ids::NodeId;
use proto::peer::{Role, TlsFiles, TlsIdentity};
use tokio::time::Instant;

use super::layout::{Layout, RoleName};
use super::parameters::Parameters;
use crate::bootstrap::{Administrator, Installation, bootstrap};
use crate::output::tell;

/// How long the cluster may take until it can be used at all.
const USABLE_TIME_MAX: Duration = Duration::from_secs(45);
/// How long it may take from there until every node has been heard of; after that what is wrong is here to stay.
const HEARD_TIME_MAX: Duration = Duration::from_millis(2500);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const ADMINISTRATOR_EMAIL: &str = "admin@localhost";

/// Gives the endpoint once the cluster can be used.
pub(crate) async fn wait(layout: &Layout, parameters: &Parameters) -> anyhow::Result<String> {
    let profile = match Profile::load(&layout.profile()) {
        Ok(profile) => profile,
        Err(client::profile::ProfileError::Missing { .. }) => first_start(layout, parameters).await?,
        Err(error) => return Err(error.into()),
    };
    let api = connect(&profile, &layout.profile()).await?;
    let deadline = Instant::now() + USABLE_TIME_MAX;
    let mut usable_since = None;
    loop {
        let wrong = match api.cluster_status().await {
            Ok(status) if status.volumes > 0 && status.health == "ok" => break,
            Ok(status) if status.volumes > 0 && status.health != "down" => {
                let since = *usable_since.get_or_insert_with(Instant::now);
                if all_heard(&status) || since.elapsed() >= HEARD_TIME_MAX {
                    for problem in status.problems {
                        tell(&problem);
                    }
                    break;
                }
                status.problems.join("; ")
            }
            Ok(status) if status.volumes == 0 => "no volumes have been made yet".to_owned(),
            Ok(status) => status.problems.join("; "),
            Err(error) => error.to_string(),
        };
        anyhow::ensure!(Instant::now() < deadline, "the cluster does not become usable: {wrong}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(profile.endpoint)
}

fn all_heard(status: &proto::v1::StatusResponse) -> bool {
    let down = |state: &str| state == "down";
    !status.nodes.iter().any(|node| down(&node.state)) && !status.disks.iter().any(|disk| down(&disk.state))
}

async fn first_start(layout: &Layout, parameters: &Parameters) -> anyhow::Result<Profile> {
    let gateway = RoleName { role: Role::Gateway, number: 1 };
    let pki = layout.pki();
    let identity = TlsIdentity::load(&TlsFiles {
        ca: pki.join("ca.pem"),
        certificate: pki.join(format!("{gateway}.pem")),
        key: pki.join(format!("{gateway}.key")),
    })?;
    let meta_nodes: Vec<(NodeId, String)> = parameters.meta_nodes();
    let installation = Installation {
        cluster: parameters.cluster()?,
        code: parameters.code()?,
        data_groups: parameters.data_groups,
        storage_nodes: usize::from(parameters.storage_nodes),
        meta_nodes,
    };
    let administrator = Administrator {
        email: ADMINISTRATOR_EMAIL.to_owned(),
        name: "Administrator".to_owned(),
        password: None,
        device: "keepstone up".to_owned(),
    };
    let admin = bootstrap(&identity, &installation, &administrator).await?;
    let profile = Profile {
        endpoint: parameters.endpoint(),
        ca: Ca::read(&pki.join("ca.pem"))?,
        token: admin.token,
        account: admin.account.to_string(),
        device: admin.device.to_string(),
    };
    profile.save(&layout.profile())?;
    Ok(profile)
}

async fn connect(profile: &Profile, path: &Path) -> anyhow::Result<ApiClient> {
    let options: ConnectOptions = profile.connect_options(path)?;
    let deadline = Instant::now() + USABLE_TIME_MAX;
    loop {
        match ApiClient::connect(&options).await {
            Ok(api) => return Ok(api.with_retry_time_max(Duration::ZERO)),
            Err(error) if error.is_transient() && Instant::now() < deadline => {}
            Err(error) => return Err(error).context("the gateway cannot be used"),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
