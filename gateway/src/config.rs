//! How a gateway is told what to be.

use std::net::SocketAddr;
use std::path::PathBuf;

use engine::ids::NodeId;
use proto::peer::TlsFiles;
use serde::{Deserialize, Serialize};

/// A gateway's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Its id, as in its certificate.
    pub node: NodeId,
    /// Where clients reach it; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Metadata nodes, `ID@host:port` or `host:port` each.
    pub meta: Vec<String>,
    /// Who it is towards the other tiers.
    pub internal_tls: TlsFiles,
    /// The certificate that clients see, in PEM form, with its chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// For caches to come; nothing durable, and nothing at all yet.
    pub data_dir: PathBuf,
    /// What clients may do at most.
    pub limits: Limits,
}

macro_rules! limits {
    ($($(#[doc = $doc:expr])+ $name:ident = $default:expr;)+) => {
        /// What clients may do at most; `docs/limits.md` says what each of them means. An account's share is the more
        /// important one: it keeps one account from using up what is everybody's.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Limits {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        impl Limits {
            /// Each limit's name in the configuration and its value.
            #[must_use]
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }
    };
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

limits! {
    /// Open connections.
    connections_max = 16_384;
    /// Open connections on which one account's token was shown.
    account_connections_max = 128;
    /// Open connections on which no right token was shown yet.
    unproven_connections_max = 1024;
    /// The same, of one address (of one /64 in IPv6).
    address_unproven_connections_max = 256;
    /// Bytes that are read of such a connection before a request of it is answered.
    unproven_connection_bytes_max = 32 * KIB;
    /// How long a TLS handshake may take.
    handshake_seconds_max = 10;
    /// How long a connection may ask for nothing at first.
    first_request_seconds_max = 15;
    /// How long a connection that was used may ask for nothing.
    idle_seconds_max = 300;
    /// How long a request's body may stand still while the gateway waits for it.
    body_idle_seconds_max = 30;
    /// How slowly a message may come, after a grace of `body_idle_seconds_max`.
    body_bytes_per_second_min = 4 * KIB;
    /// Bytes of a request that needs no token.
    stranger_body_bytes_max = 8 * KIB;
    /// How long the body of such a request may take.
    stranger_body_seconds_max = 10;
    /// Sign-ins under way of one address.
    address_sign_ins_max = 512;
    /// Sign-ins under way.
    sign_ins_max = 1024;
    /// Other requests without a token (health, reflection) under way of one address.
    address_open_requests_max = 32;
    /// The same, of all.
    open_requests_max = 256;
    /// How long such a request may stay open.
    open_request_seconds_max = 600;
    /// Tokens never seen before that one address may show at once, and wrong ones a second after that.
    address_tokens_burst = 100;
    /// See `address_tokens_burst`.
    address_tokens_per_second = 20;
    /// Wrong passwords for one account from one address at once, and a minute after that.
    sign_in_guesses_burst = 5;
    /// See `sign_in_guesses_burst`.
    sign_in_guesses_per_minute = 60;
    /// Wrong passwords for one account from everywhere at once, and a minute after that.
    account_guesses_burst = 20;
    /// See `account_guesses_burst`.
    account_guesses_per_minute = 600;
    /// How long a sign-in may wait for its turn.
    sign_in_wait_seconds_max = 10;
    /// Requests of one account under way.
    account_requests_max = 128;
    /// Requests under way.
    requests_max = 2048;
    /// Items that one account may ask for in vain at once, for it has as much as it may have or they are not valid; and a
    /// second after that.
    account_refusals_burst = 1024;
    /// See `account_refusals_burst`.
    account_refusals_per_second = 64;
    /// Entries of chunk lists that one account may begin uploads with at once, and a second after that; of each request's
    /// first 8,192 sixteen count as one.
    account_list_entries_burst = 100_000;
    /// See `account_list_entries_burst`.
    account_list_entries_per_second = 10_000;
    /// Pages of lists (folders, changes, trash, versions, devices) that one account has asked for and that are being
    /// gathered.
    account_lists_max = 8;
    /// The same, of all.
    lists_max = 32;
    /// Bytes of one account's requests that are under way, beside chunks.
    account_request_bytes_max = 40 * MIB;
    /// The same, of all.
    request_bytes_max = 96 * MIB;
    /// Streams of chunks of one account.
    account_put_streams_max = 64;
    /// Streams of chunks.
    put_streams_max = 512;
    /// Bytes of one account's messages of chunks that have begun and are not whole.
    account_chunk_message_bytes_max = 16 * MIB;
    /// The same, of all.
    chunk_message_bytes_max = 96 * MIB;
    /// Chunk bytes of one account that are not acknowledged yet.
    account_upload_bytes_max = 32 * MIB;
    /// The same, of all.
    upload_bytes_max = 48 * MIB;
    /// Downloads of one account at once.
    account_downloads_max = 96;
    /// Downloads at once.
    downloads_max = 1024;
    /// Downloads of one account for which it is being looked up just now where their bytes are.
    account_lookups_max = 64;
    /// The same, of all.
    lookups_max = 512;
    /// Bytes of one account's downloads that are read and not handed over for sending.
    account_download_bytes_max = 16 * MIB;
    /// The same, of all.
    download_bytes_max = 64 * MIB;
    /// Bytes of one account's downloads that are being read from the disks just now.
    account_read_bytes_max = 16 * MIB;
    /// The same, of all.
    read_bytes_max = 32 * MIB;
    /// Bytes of one account's answers that its clients have not taken yet.
    account_answer_bytes_max = 24 * MIB;
    /// The same, of all.
    answer_bytes_max = 64 * MIB;
    /// Clients of one account that wait for changes.
    account_waiters_max = 1024;
    /// Clients that wait for changes.
    waiters_max = 16_384;
    /// Clients of one device that wait for changes: its sync client needs one, and tools beside it a few.
    device_waiters_max = 8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_in_the_manual_with_its_default() {
        let manual = include_str!("../../docs/limits.md");
        for (name, value) in Limits::default().values() {
            let row = manual.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("docs/limits.md does not name {name}"));
            let shown = row.split('|').nth(2).unwrap().trim().replace(',', "");
            assert_eq!(shown, value.to_string(), "{name}");
        }
    }
}
