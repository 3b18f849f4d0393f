//! The cluster's settings.

use engine::ids::{ROOT_GROUP, RequestId};
use metaraft::model::command::{Command, RootStep, Steps};
use metaraft::model::settings::{SETTINGS, SettingDefinition, Settings, check};
use proto::v1;

use crate::core::Core;
use crate::failure::Failure;

fn to_wire(definition: &SettingDefinition, settings: &Settings) -> v1::Setting {
    v1::Setting {
        name: definition.name.to_owned(),
        value: settings.value(definition.name).unwrap_or(definition.default_value).to_owned(),
        default_value: definition.default_value.to_owned(),
        description: definition.description.to_owned(),
    }
}

/// All settings, as of now.
pub(crate) async fn list(core: &Core) -> Result<Vec<v1::Setting>, Failure> {
    let refreshed = core.meta.api().refresh_map().await;
    refreshed.map_err(|error| Failure::from_meta(&error, "settings"))?;
    let settings = core.meta.api().settings();
    Ok(SETTINGS.iter().map(|definition| to_wire(definition, &settings)).collect())
}

/// Sets one.
pub(crate) async fn set(
    core: &Core,
    request: RequestId,
    name: &str,
    value: &str,
) -> Result<v1::Setting, Failure> {
    let definition = check(name, value).map_err(|error| Failure::invalid(error.to_string()))?;
    let step = RootStep::SettingSet { name: name.to_owned(), value: value.to_owned() };
    let command = Command { request: request.step(0), steps: Steps::Root(vec![step]) };
    let failed = |error| Failure::from_meta(&error, name);
    core.meta.api().propose(ROOT_GROUP, command).await.map_err(failed)?;
    core.meta.api().refresh_map().await.map_err(failed)?;
    Ok(to_wire(definition, &core.meta.api().settings()))
}
