//! What the desktop tells and is told over D-Bus: whether the network is metered, and of conflicts. A machine without
//! a bus, or without the service on it, is nothing special: the network counts as not metered, and nobody is told.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use zbus::{Connection, MatchRule, MessageStream, Variant, message};

/// Conflicts that wait to be told; more are left out, the log has them all.
pub const NOTICES_QUEUED_MAX: usize = 64;
/// How long a bus, or the service on it, may take to answer.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);
/// After which a bus that was not there is looked for again.
const RETRY_INTERVAL: Duration = Duration::from_secs(300);

const NETWORK_MANAGER: &str = "org.freedesktop.NetworkManager";
const NETWORK_MANAGER_PATH: &str = "/org/freedesktop/NetworkManager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const NOTIFICATIONS: &str = "org.freedesktop.Notifications";
const NOTIFICATIONS_PATH: &str = "/org/freedesktop/Notifications";
/// As long as the desktop shows notices by itself.
const EXPIRE_DEFAULT: i32 = -1;

/// A conflict, to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The synced folder.
    pub root: PathBuf,
    /// The conflicted copy, below it.
    pub path: String,
}

/// Follows whether the network is metered, until it is told to stop.
pub async fn follow_metered(metered: watch::Sender<bool>, stop: CancellationToken) {
    loop {
        let followed = stop.run_until_cancelled(follow_network_manager(&metered)).await;
        // Nobody knows any more: then it is not.
        metered.send_if_modified(|metered| std::mem::replace(metered, false));
        match followed {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(%error, "no NetworkManager to ask"),
        }
        if stop.run_until_cancelled(tokio::time::sleep(RETRY_INTERVAL)).await.is_none() {
            return;
        }
    }
}

async fn follow_network_manager(metered: &watch::Sender<bool>) -> Result<(), BusError> {
    let connection = in_time(Connection::system()).await?;
    let rule = MatchRule::builder()
        .msg_type(message::Type::Signal)
        .sender(NETWORK_MANAGER)
        .path(NETWORK_MANAGER_PATH)
        .interface(PROPERTIES)
        .member("PropertiesChanged")
        .build()?;
    let mut changes = in_time(MessageStream::for_match_rule(rule, &connection, None)).await?;
    loop {
        let now = ask_metered(&connection).await?;
        metered.send_if_modified(|metered| std::mem::replace(metered, now) != now);
        match changes.next().await {
            Some(change) => drop(change?),
            None => return Ok(()),
        }
    }
}

async fn ask_metered(connection: &Connection) -> Result<bool, BusError> {
    let call = connection.call_method(
        Some(NETWORK_MANAGER),
        NETWORK_MANAGER_PATH,
        Some(PROPERTIES),
        "Get",
        &(NETWORK_MANAGER, "Metered"),
    );
    let answer = in_time(call).await?;
    let body = answer.body();
    let value: Variant<'_> = body.deserialize()?;
    Ok(is_metered(&value))
}

/// NMMetered: 1 is yes, 3 is "yes, as it seems"; 0, 2 and 4 are unknown, no, and "no, as it seems".
fn is_metered(value: &Variant<'_>) -> bool {
    matches!(value, Variant::U32(1 | 3))
}

/// Tells of conflicts on the desktop, until nobody sends any more.
pub async fn tell_conflicts(mut notices: mpsc::Receiver<Notice>) {
    let mut connection = None;
    while let Some(notice) = notices.recv().await {
        if connection.is_none() {
            connection = in_time(Connection::session()).await.ok();
        }
        let Some(bus) = &connection else { continue };
        if let Err(error) = notify(bus, &notice).await {
            tracing::debug!(%error, "no desktop to tell");
            connection = None;
        }
    }
}

async fn notify(connection: &Connection, notice: &Notice) -> Result<(), BusError> {
    let body = format!(
        "Two devices changed one file. Both versions are kept, the other one as\n{}",
        escape(&notice.root.join(&notice.path).to_string_lossy())
    );
    let hints: HashMap<&str, Variant<'_>> = HashMap::new();
    let actions: [&str; 0] = [];
    let arguments = (
        "Keepstone",
        0_u32,
        "dialog-information",
        "Conflicted copy",
        body.as_str(),
        &actions[..],
        hints,
        EXPIRE_DEFAULT,
    );
    let call = connection.call_method(
        Some(NOTIFICATIONS),
        NOTIFICATIONS_PATH,
        Some(NOTIFICATIONS),
        "Notify",
        &arguments,
    );
    in_time(call).await?;
    Ok(())
}

/// A body is markup: names must not be taken for it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Why a bus was of no use.
#[derive(Debug, thiserror::Error)]
enum BusError {
    #[error(transparent)]
    Bus(#[from] zbus::Error),
    #[error("no answer in time")]
    Time,
}

async fn in_time<T>(call: impl Future<Output = zbus::Result<T>>) -> Result<T, BusError> {
    match tokio::time::timeout(CALL_TIME_MAX, call).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => Err(BusError::Time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_network_that_seems_metered_is() {
        let metered: Vec<bool> = (0..5).map(|number| is_metered(&Variant::U32(number))).collect();
        assert_eq!(metered, [false, true, false, true, false]);
        assert!(!is_metered(&Variant::from("yes")));
    }

    #[test]
    fn a_name_is_not_markup() {
        assert_eq!(escape("a <b> & c"), "a &lt;b&gt; &amp; c");
    }

    #[tokio::test]
    async fn telling_ends_with_its_last_sender_bus_or_not() {
        let (sender, notices) = mpsc::channel(1);
        let task = tokio::spawn(tell_conflicts(notices));
        sender.send(Notice { root: "/r".into(), path: "a".to_owned() }).await.unwrap();
        drop(sender);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn following_ends_when_told_bus_or_not() {
        let (metered, now) = watch::channel(false);
        let stop = CancellationToken::new();
        let task = tokio::spawn(follow_metered(metered, stop.clone()));
        stop.cancel();
        task.await.unwrap();
        assert!(!*now.borrow());
    }
}
