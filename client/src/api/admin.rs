//! Calls for administrators.

use proto::v1;
use tonic::Streaming;

use super::{admin, present};
use crate::call_error::CallError;
use crate::connection::ApiClient;

/// An account to be made.
#[derive(Clone, Default)]
pub struct NewAccount {
    /// Its email address.
    pub email: String,
    /// The person's name.
    pub name: String,
    /// Its password.
    pub password: String,
    /// Most bytes it may keep; 0 = no limit.
    pub quota_bytes: u64,
    /// Whether it may make accounts and see the cluster.
    pub admin: bool,
}

impl std::fmt::Debug for NewAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewAccount").field("email", &self.email).finish_non_exhaustive()
    }
}

impl ApiClient {
    /// Makes an account; gives its id.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn create_account(&self, account: NewAccount) -> Result<bytes::Bytes, CallError> {
        let message = v1::CreateAccountRequest {
            request_id: self.new_request_id().await?,
            email: account.email,
            name: account.name,
            password: account.password,
            quota_bytes: account.quota_bytes,
            admin: account.admin,
        };
        let answer = self
            .call(message, |channel, request| async move { admin(channel).create_account(request).await })
            .await?;
        Ok(answer.account)
    }

    /// What an account may keep in its tree and what it has; after the quota was set, if `quota_bytes` is given (0 = no
    /// limit).
    ///
    /// # Errors
    /// If there is no such account, the gateway refuses or cannot be reached.
    pub async fn account_quota(
        &self,
        email: &str,
        quota_bytes: Option<u64>,
    ) -> Result<v1::AccountQuotaResponse, CallError> {
        let message = v1::AccountQuotaRequest {
            request_id: self.new_request_id().await?,
            email: email.to_owned(),
            set: quota_bytes.is_some(),
            quota_bytes: quota_bytes.unwrap_or(0),
        };
        self.call(message, |channel, request| async move { admin(channel).account_quota(request).await })
            .await
    }

    /// How the cluster is now.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn cluster_status(&self) -> Result<v1::StatusResponse, CallError> {
        self.call(
            v1::StatusRequest {},
            |channel, request| async move { admin(channel).status(request).await },
        )
        .await
    }

    /// Begins a scrub of everything.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn scrub(&self) -> Result<ScrubStream, CallError> {
        let answer = admin(self.channel()).scrub(self.request(v1::AdminScrubRequest {})).await;
        let stream = answer.map_err(|status| self.status(&status))?.into_inner();
        Ok(ScrubStream { api: self.clone(), stream })
    }

    /// All settings.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn list_settings(&self) -> Result<Vec<v1::Setting>, CallError> {
        let answer = self
            .call(v1::ListSettingsRequest {}, |channel, request| async move {
                admin(channel).list_settings(request).await
            })
            .await?;
        Ok(answer.settings)
    }

    /// Changes a setting.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn set_setting(&self, name: &str, value: &str) -> Result<v1::Setting, CallError> {
        let message = v1::SetSettingRequest {
            request_id: self.new_request_id().await?,
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let answer = self
            .call(message, |channel, request| async move { admin(channel).set_setting(request).await })
            .await?;
        present(answer.setting, "setting")
    }
}

/// A scrub under way.
#[derive(Debug)]
pub struct ScrubStream {
    api: ApiClient,
    stream: Streaming<v1::AdminScrubResponse>,
}

impl ScrubStream {
    /// The next news; the last has `done` set, after it comes `None`. Cancel safe.
    ///
    /// # Errors
    /// If the scrub fails or the gateway goes away.
    pub async fn next(&mut self) -> Result<Option<v1::AdminScrubResponse>, CallError> {
        self.stream.message().await.map_err(|status| self.api.status(&status))
    }
}
