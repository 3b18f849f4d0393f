//! `keepstone.v1.Admin`: administrators only.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use proto::v1;
use proto::v1::admin_server::Admin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::accounts::{self, NewAccount};
use crate::admin;
use crate::auth;
use crate::convert;
use crate::core::Core;
use crate::password::NO_PASSWORD;

/// Progress messages that wait to be taken.
const MESSAGES_MAX: usize = 16;

pub(crate) struct AdminService {
    core: Arc<Core>,
}

impl AdminService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_account(
        &self,
        request: Request<v1::CreateAccountRequest>,
    ) -> Result<Response<v1::CreateAccountResponse>, Status> {
        let caller = auth::caller(&request)?;
        caller.require_admin()?;
        let mut message = request.into_inner();
        // No hash of it is kept but the slow one.
        let password = std::mem::take(&mut message.password);
        let request = convert::request_of(&caller, &message.request_id, "create_account", &message)?;
        let v1::CreateAccountRequest { email, name, quota_bytes, admin, .. } = message;
        let email = accounts::normalise_email(&email)?;
        accounts::check_text("name", &name)?;
        let password_hash = if password.is_empty() {
            NO_PASSWORD.to_owned()
        } else {
            self.core.passwords.hash(password).await?
        };
        let new = NewAccount { email, name, password_hash, quota_bytes, admin };
        let account = accounts::create(&self.core.meta, request, new).await?;
        let account = Bytes::copy_from_slice(account.as_bytes());
        Ok(Response::new(v1::CreateAccountResponse { account }))
    }

    async fn account_quota(
        &self,
        request: Request<v1::AccountQuotaRequest>,
    ) -> Result<Response<v1::AccountQuotaResponse>, Status> {
        let caller = auth::caller(&request)?;
        caller.require_admin()?;
        let message = request.into_inner();
        let request = || convert::request_of(&caller, &message.request_id, "account_quota", &message);
        let set = if message.set { Some((request()?, message.quota_bytes)) } else { None };
        let email = accounts::normalise_email(&message.email)?;
        Ok(Response::new(accounts::quota(&self.core.meta, email, set).await?))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        auth::caller(&request)?.require_admin()?;
        let gathered = admin::gather::gather(&self.core).await;
        Ok(Response::new(admin::status::status(&gathered)))
    }

    type ScrubStream = Pin<Box<dyn Stream<Item = Result<v1::AdminScrubResponse, Status>> + Send>>;

    async fn scrub(
        &self,
        request: Request<v1::AdminScrubRequest>,
    ) -> Result<Response<Self::ScrubStream>, Status> {
        auth::caller(&request)?.require_admin()?;
        let (sink, messages) = mpsc::channel(MESSAGES_MAX);
        let core = Arc::clone(&self.core);
        self.core.tasks.spawn(async move {
            admin::scrub::serve(core, sink).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn list_settings(
        &self,
        request: Request<v1::ListSettingsRequest>,
    ) -> Result<Response<v1::ListSettingsResponse>, Status> {
        auth::caller(&request)?.require_admin()?;
        let settings = admin::settings::list(&self.core).await?;
        Ok(Response::new(v1::ListSettingsResponse { settings }))
    }

    async fn set_setting(
        &self,
        request: Request<v1::SetSettingRequest>,
    ) -> Result<Response<v1::SetSettingResponse>, Status> {
        let caller = auth::caller(&request)?;
        caller.require_admin()?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "set_setting", &message)?;
        let v1::SetSettingRequest { name, value, .. } = message;
        let setting = admin::settings::set(&self.core, request, &name, &value).await?;
        Ok(Response::new(v1::SetSettingResponse { setting: Some(setting) }))
    }
}
