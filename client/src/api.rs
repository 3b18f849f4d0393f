//! The gateway's calls, one method each. Unary calls are repeated while their failures are transient.

mod accounts;
mod admin;
mod files;
mod sync;

pub use self::admin::{NewAccount, ScrubStream};
pub use self::files::VersionsRemoved;
pub(crate) use self::sync::RangeOf;
use proto::MESSAGE_BYTES_MAX;
use proto::v1::accounts_client::AccountsClient;
use proto::v1::admin_client::AdminClient;
use proto::v1::files_client::FilesClient;
use tonic::transport::Channel;

use crate::call_error::CallError;

pub(crate) fn files(channel: Channel) -> FilesClient<Channel> {
    FilesClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

pub(crate) fn accounts(channel: Channel) -> AccountsClient<Channel> {
    AccountsClient::new(channel)
}

fn admin(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn present<T>(part: Option<T>, what: &str) -> Result<T, CallError> {
    part.ok_or_else(|| CallError::protocol(format!("no {what}")))
}
