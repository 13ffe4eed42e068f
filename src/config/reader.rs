//! Reads single settings and collects what is wrong with them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use souk_actors::world::{SystemWorld, World};

use super::{Credential, Mode, Secret};
use crate::files::write_owner_only;

/// The longest duration that is taken: what is longer was not meant, and would leave the range in
/// which times are reckoned.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// One thing that is wrong with one setting. It never repeats the value: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct ConfigError {
    /// The setting, by the name of its variable.
    pub name: &'static str,
    /// What is wrong.
    pub problem: String,
}

/// Everything that is wrong, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl std::fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where settings come from: flags first, then the environment.
pub struct Source<'a> {
    flags: BTreeMap<&'static str, String>,
    environment: Environment<'a>,
}

impl<'a> Source<'a> {
    /// Only an environment.
    pub fn new(environment: Environment<'a>) -> Self {
        Self { flags: BTreeMap::new(), environment }
    }

    /// The same with a flag, named like its variable; none changes nothing.
    pub fn with_flag(mut self, name: &'static str, value: Option<String>) -> Self {
        if let Some(value) = value {
            self.flags.insert(name, value);
        }
        self
    }
}

/// Reads settings from a source.
pub(super) struct Reader<'a> {
    source: &'a Source<'a>,
    errors: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Source<'a>) -> Self {
        Self { source, errors: Vec::new() }
    }

    pub(super) fn finish(self) -> Result<(), ConfigErrors> {
        if self.errors.is_empty() { Ok(()) } else { Err(ConfigErrors(self.errors)) }
    }

    pub(super) fn error(&mut self, name: &'static str, problem: impl Into<String>) {
        self.errors.push(ConfigError { name, problem: problem.into() });
    }

    /// A value; an empty one counts as none.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let value = self.source.flags.get(name).cloned();
        let value = value.or_else(|| (self.source.environment)(name));
        value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    pub(super) fn parsed<T: FromStr>(
        &mut self,
        name: &'static str,
        default: T,
        expected: &str,
    ) -> T {
        let Some(text) = self.text(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            self.error(name, format!("must be {expected}"));
            default
        })
    }

    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> bool {
        match self.text(name).as_deref() {
            None => default,
            Some("true" | "1" | "yes" | "on") => true,
            Some("false" | "0" | "no" | "off") => false,
            Some(_) => {
                self.error(name, "must be true or false");
                default
            }
        }
    }

    pub(super) fn optional_number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<usize>,
    ) -> Option<usize> {
        let text = self.text(name)?;
        let number = text.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            let (low, high) = range.into_inner();
            self.error(name, format!("must be a whole number from {low} to {high}"));
        }
        number
    }

    pub(super) fn number(
        &mut self,
        name: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        self.optional_number(name, range).unwrap_or(default)
    }

    /// A number of retries.
    pub(super) fn small(&mut self, name: &'static str, default: u32) -> u32 {
        let number = self.optional_number(name, 0..=1_000);
        number.and_then(|number| u32::try_from(number).ok()).unwrap_or(default)
    }

    /// A duration, which must be longer than nothing and at most [`DURATION_MAX`].
    pub(super) fn optional_duration(&mut self, name: &'static str) -> Option<Duration> {
        let duration = self.any_duration(name)?;
        if duration.is_zero() {
            self.error(name, "must be longer than nothing");
        }
        Some(duration)
    }

    pub(super) fn duration(&mut self, name: &'static str, default: Duration) -> Duration {
        self.optional_duration(name).unwrap_or(default)
    }

    /// The same where none at all (`0s`) is fine too.
    pub(super) fn duration_or_none(&mut self, name: &'static str, default: Duration) -> Duration {
        self.any_duration(name).unwrap_or(default)
    }

    fn any_duration(&mut self, name: &'static str) -> Option<Duration> {
        let text = self.text(name)?;
        let duration = humantime::parse_duration(&text).ok();
        if duration.is_none_or(|duration| duration > DURATION_MAX) {
            let problem = "must be a duration with a unit (500ms, 30s, 5m), at most 365 days";
            self.error(name, problem);
        }
        duration
    }

    /// A key: from the variable, from the file that `<name>_FILE` names, or (development only) from
    /// the data folder, where it is made up the first time.
    pub(super) fn secret(
        &mut self,
        name: &'static str,
        mode: Mode,
        data_dir: &Path,
    ) -> Option<Secret> {
        let text = match self.text_or_file(name)? {
            Some(text) => text,
            None if mode.is_development() => return self.made_up(name, data_dir),
            None => {
                self.error(name, format!("is required in production (or {name}_FILE)"));
                return None;
            }
        };
        let secret = Secret::parse(&text);
        if secret.is_none() {
            self.error(name, "must be 32 bytes in base64 or hexadecimal");
        }
        secret
    }

    /// What somebody else gave us to prove who we are: from the variable or from the file that
    /// `<name>_FILE` names.
    pub(super) fn credential(&mut self, name: &'static str, needed_for: &str) -> Credential {
        let Some(text) = self.text_or_file(name) else { return Credential::new("") };
        let text = text.unwrap_or_default();
        if text.trim().is_empty() {
            self.error(name, format!("is required for {needed_for} (or {name}_FILE)"));
        }
        Credential::new(text.trim())
    }

    /// The same where it may be left out.
    pub(super) fn optional_credential(
        &mut self,
        name: &'static str,
        needed_for: &str,
    ) -> Option<Credential> {
        let is_given = self.text(name).is_some() || self.text(&format!("{name}_FILE")).is_some();
        is_given.then(|| self.credential(name, needed_for))
    }

    /// The value, or what the file has that `<name>_FILE` names; none: what is wrong is reported.
    fn text_or_file(&mut self, name: &'static str) -> Option<Option<String>> {
        let file = self.text(&format!("{name}_FILE"));
        match (self.text(name), file) {
            (Some(_), Some(_)) => {
                self.error(name, format!("is set, and so is {name}_FILE: leave one out"));
                None
            }
            (None, Some(path)) => match std::fs::read_to_string(&path) {
                Ok(text) => Some(Some(text)),
                Err(error) => {
                    self.error(name, format!("the file of {name}_FILE cannot be read: {error}"));
                    None
                }
            },
            (text, None) => Some(text),
        }
    }

    fn made_up(&mut self, name: &'static str, data_dir: &Path) -> Option<Secret> {
        let path = key_file(data_dir, name);
        if let Ok(text) = std::fs::read_to_string(&path) {
            let secret = Secret::parse(&text);
            if secret.is_none() {
                self.error(name, format!("{} is damaged", path.display()));
            }
            return secret;
        }
        let mut bytes = [0; 32];
        SystemWorld::new().fill(&mut bytes);
        let secret = Secret::new(bytes);
        match write_owner_only(&path, secret.to_hex().as_bytes()) {
            Ok(()) => Some(secret),
            Err(error) => {
                self.error(name, format!("{} cannot be written: {error}", path.display()));
                None
            }
        }
    }
}

/// Where the data folder keeps the key of this name that development made up, and a backup of it.
pub fn key_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("keys").join(name.to_lowercase())
}
