//! `[[replica]]`: what one replica has of its own.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::disks::Problem;
use super::linux::ReplicaLinux;
use super::{Appliance, ImageSpec, MAX_REPLICAS, check};

/// One `[[replica]]`, in the order of the replicas' numbers. What it does not say is the appliance's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicaSpec {
    /// What it is called in messages and reports; default its number.
    #[serde(deserialize_with = "check::hostname")]
    pub name: Option<String>,
    /// What its answers count for; default voter.
    pub role: Role,
    /// Its image instead of `[image]`.
    pub image: Option<ImageSpec>,
    /// Its program and arguments instead of `command` of `[program]`.
    #[serde(deserialize_with = "check::own_command")]
    pub command: Option<Vec<String>>,
    /// Environment variables besides those of `[program]`, or instead of those of the same name.
    #[serde(deserialize_with = "check::env")]
    pub env: Option<BTreeMap<String, String>>,
    /// What its Linux machine has instead of what `[linux]` says; only with `[linux]`.
    pub linux: Option<ReplicaLinux>,
}

/// `role` of a `[[replica]]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It counts for the majority.
    #[default]
    Voter,
    /// Its answer is the one that counts (policy primary-with-fallback).
    Primary,
    /// It never counts, it is only compared.
    Canary,
}

impl Appliance {
    /// The appliance as replica `number` (from 0) sees it: with that replica's image, command and environment. A replica that the
    /// file does not list has nothing of its own.
    #[must_use]
    pub fn replica(&self, number: usize) -> Appliance {
        let mut effective = self.clone();
        let Some(own) = self.replicas.get(number) else {
            return effective;
        };
        if let Some(image) = &own.image {
            effective.image = image.clone();
            let label = own.name.clone();
            effective.variant = Some(label.unwrap_or_else(|| number.to_string()));
        }
        if let Some(command) = &own.command {
            effective.program.command.clone_from(command);
        }
        if let Some(env) = &own.env {
            effective.program.own_env = true;
            let variables = env.iter().map(|(key, value)| (key.clone(), value.clone()));
            effective.program.env.extend(variables);
        }
        if let (Some(linux), Some(own)) = (&mut effective.linux, &own.linux) {
            own.apply(linux);
        }
        effective
    }

    /// What replica `number` (from 0) is called in messages: its name, or `replica N`.
    #[must_use]
    pub fn replica_name(&self, number: usize) -> String {
        let name = self.replicas.get(number).and_then(|own| own.name.clone());
        name.unwrap_or_else(|| format!("replica {number}"))
    }

    /// The role of replica `number` (from 0).
    #[must_use]
    pub fn role(&self, number: usize) -> Role {
        let own = self.replicas.get(number);
        own.map_or_else(Role::default, |own| own.role)
    }
}

/// Checks `[[replica]]`; `given` is what `replicas` of `[machine]` says, if it says anything. Without it, as many run as are listed.
pub(super) fn check_all(appliance: &mut Appliance, given: bool) -> Result<(), Problem> {
    let count = appliance.replicas.len();
    if count == 0 {
        return Ok(());
    }
    let listed = u8::try_from(count).unwrap_or(u8::MAX);
    if listed > MAX_REPLICAS {
        let text = format!("{count} replicas: {MAX_REPLICAS} are the most");
        return Err(("replica", count - 1, text));
    }
    if !given {
        appliance.machine.replicas = listed;
    }
    if appliance.machine.replicas != listed {
        let text = format!(
            "{count} [[replica]] are listed, replicas of [machine] is {}: list each one, or none",
            appliance.machine.replicas
        );
        return Err(("replica", count - 1, text));
    }
    let mut names = BTreeSet::new();
    for (number, own) in appliance.replicas.iter().enumerate() {
        if let Some(name) = &own.name
            && !names.insert(name)
        {
            let text = format!("there is another replica of the name {name}");
            return Err(("replica", number, text));
        }
        if own.linux.is_some() && appliance.linux.is_none() {
            let text = "key \"linux\" in [replica]: only replicas of an appliance with [linux] have a kernel of their own".to_owned();
            return Err(("replica", number, text));
        }
        check::strings_fit(&appliance.replica(number)).map_err(|text| ("replica", number, text))?;
    }
    Ok(())
}
