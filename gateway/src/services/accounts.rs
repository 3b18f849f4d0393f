//! `keepstone.v1.Accounts`.

use std::sync::Arc;

use bytes::Bytes;
use metaraft::api::MetaError;
use metaraft::model::command::DataStep;
use metaraft::model::query::{Query, Reply};
use proto::v1;
use proto::v1::accounts_server::Accounts;
use tonic::{Request, Response, Status};

use crate::accounts;
use crate::auth;
use crate::convert;
use crate::core::Core;
use crate::door::gate::Origin;
use crate::failure::Failure;
use crate::meta::wrong_reply;

pub(crate) struct AccountsService {
    core: Arc<Core>,
}

fn failed(error: &MetaError) -> Failure {
    Failure::from_meta(error, "account")
}

impl AccountsService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Accounts for AccountsService {
    async fn sign_in(
        &self,
        request: Request<v1::SignInRequest>,
    ) -> Result<Response<v1::SignInResponse>, Status> {
        let origin = request.extensions().get::<Origin>().copied();
        let origin = origin
            .ok_or_else(|| Failure::internal("sign-in", &"a request came by the gate without an origin"))?;
        let v1::SignInRequest { email, password, device_name } = request.into_inner();
        let token = accounts::sign_in(&self.core, origin, &email, password, &device_name).await?;
        Ok(Response::new(v1::SignInResponse {
            token: token.text(),
            account: Bytes::copy_from_slice(token.account.as_bytes()),
            device: Bytes::copy_from_slice(token.device.as_bytes()),
        }))
    }

    async fn who_am_i(
        &self,
        request: Request<v1::WhoAmIRequest>,
    ) -> Result<Response<v1::WhoAmIResponse>, Status> {
        let caller = auth::caller(&request)?;
        let query = Query::Namespace { namespace: caller.namespace };
        let reply =
            self.core.meta.query(caller.namespace.slot(), query).await.map_err(|error| failed(&error))?;
        let Reply::Namespace(Some(namespace)) = reply else {
            return Err(failed(&wrong_reply("namespace")).into());
        };
        Ok(Response::new(v1::WhoAmIResponse {
            account: Bytes::copy_from_slice(caller.account.as_bytes()),
            email: caller.account_row.email,
            name: caller.account_row.name,
            admin: caller.account_row.admin,
            device: Bytes::copy_from_slice(caller.device.as_bytes()),
            device_name: caller.device_row.name,
            quota_bytes: namespace.quota_bytes,
            used_bytes: namespace.charged_bytes(),
            entries_bytes: namespace.row_bytes,
            open_uploads_bytes: namespace.open.bytes,
            server_time_ms: crate::random::log_ms(),
            takes_token_header: true,
        }))
    }

    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        let caller = auth::caller(&request)?;
        let query = Query::Devices { account: caller.account };
        let reply =
            self.core.meta.query(caller.account.slot(), query).await.map_err(|error| failed(&error))?;
        let Reply::Devices(rows) = reply else { return Err(failed(&wrong_reply("devices")).into()) };
        let devices = rows.into_iter().map(|(device, row)| v1::Device {
            device: Bytes::copy_from_slice(device.as_bytes()),
            name: row.name,
            created_ms: row.created_ms,
            revoked_ms: row.revoked_ms.unwrap_or(0),
        });
        Ok(Response::new(v1::ListDevicesResponse { devices: devices.collect() }))
    }

    async fn revoke_device(
        &self,
        request: Request<v1::RevokeDeviceRequest>,
    ) -> Result<Response<v1::RevokeDeviceResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let request = convert::request_of(&caller, &message.request_id, "revoke_device", &message)?;
        let device = convert::device_id(&message.device)?;
        let step = DataStep::DeviceRevoke { account: caller.account, device };
        let revoked = self.core.meta.step(caller.account.slot(), request.step(0), step).await;
        revoked.map_err(|error| Failure::from_meta(&error, &format!("device {device}")))?;
        Ok(Response::new(v1::RevokeDeviceResponse {}))
    }
}
