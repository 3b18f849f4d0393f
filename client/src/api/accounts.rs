//! Accounts and devices.

use bytes::Bytes;
use proto::v1;

use super::accounts;
use crate::call_error::CallError;
use crate::connection::ApiClient;

impl ApiClient {
    /// Exchanges a password for the token of a new device. Not repeated: a lost answer leaves a device unused.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn sign_in(
        &self,
        email: &str,
        password: &str,
        device_name: &str,
    ) -> Result<v1::SignInResponse, CallError> {
        let message = v1::SignInRequest {
            email: email.to_owned(),
            password: password.to_owned(),
            device_name: device_name.to_owned(),
        };
        let once = self.clone().with_retry_time_max(std::time::Duration::ZERO);
        once.call(message, |channel, request| async move { accounts(channel).sign_in(request).await }).await
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn who_am_i(&self) -> Result<v1::WhoAmIResponse, CallError> {
        self.call(v1::WhoAmIRequest {}, |channel, request| async move {
            accounts(channel).who_am_i(request).await
        })
        .await
    }

    /// The account's devices.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn list_devices(&self) -> Result<Vec<v1::Device>, CallError> {
        let answer = self
            .call(v1::ListDevicesRequest {}, |channel, request| async move {
                accounts(channel).list_devices(request).await
            })
            .await?;
        Ok(answer.devices)
    }

    /// Takes a device's token out of use.
    ///
    /// # Errors
    /// If the gateway refuses or cannot be reached.
    pub async fn revoke_device(&self, device: Bytes) -> Result<(), CallError> {
        let message = v1::RevokeDeviceRequest { request_id: self.new_request_id().await?, device };
        self.call(message, |channel, request| async move { accounts(channel).revoke_device(request).await })
            .await?;
        Ok(())
    }
}
