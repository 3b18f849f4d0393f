//! The cluster's settings.

use std::collections::BTreeSet;

use engine::ids::{GroupId, ROOT_GROUP};
use metaraft::model::command::{Command, DataStep, RootStep, Steps};
use metaraft::model::request_key::RequestKey;
use metaraft::model::settings::{
    JOURNAL_HORIZON, SETTINGS, SettingDefinition, Settings, check, parse_duration_ms,
};
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

/// Tells every data group how long its journals keep what is gone, before the setting says so: repeated after a crash
/// in between, it does the same again.
async fn tell_horizon(core: &Core, request: RequestKey, value: &str) -> Result<(), Failure> {
    let horizon_ms = parse_duration_ms(value).ok_or_else(|| Failure::invalid("not a duration"))?;
    let groups: BTreeSet<GroupId> = core.meta.map().slots.iter().map(|range| range.group).collect();
    for group in groups {
        let steps = vec![DataStep::JournalHorizonSet { horizon_ms }];
        let told = core.meta.commit_in(group, request.step(1 + u32::from(group.0)), steps).await;
        told.map_err(|error| Failure::from_meta(&error, JOURNAL_HORIZON))?;
    }
    Ok(())
}

/// Sets one.
pub(crate) async fn set(
    core: &Core,
    request: RequestKey,
    name: &str,
    value: &str,
) -> Result<v1::Setting, Failure> {
    let definition = check(name, value).map_err(|error| Failure::invalid(error.to_string()))?;
    let step = RootStep::SettingSet { name: name.to_owned(), value: value.to_owned() };
    let command = Command::new(request.step(0), Steps::Root(vec![step]));
    let failed = |error| Failure::from_meta(&error, name);
    if name == JOURNAL_HORIZON {
        tell_horizon(core, request, value).await?;
    }
    core.meta.api().propose(ROOT_GROUP, command).await.map_err(failed)?;
    core.meta.api().refresh_map().await.map_err(failed)?;
    Ok(to_wire(definition, &core.meta.api().settings()))
}
