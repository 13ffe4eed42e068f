//! Reads single settings and collects what is wrong with them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use souk_actors::world::{SystemWorld, World};
use url::Url;

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

/// Where the value of a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line.
    Flag,
    /// A variable of the environment.
    Environment,
    /// A file that a variable names.
    File,
    /// Nobody said anything.
    Default,
}

/// A setting that is in force, fit to be looked at: what is secret in it is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The name of its variable.
    pub name: String,
    /// Its value; none: there is none, or the default has no short form.
    pub value: Option<String>,
    /// Where that comes from.
    pub origin: Origin,
}

/// What stands for a secret.
const HIDDEN: &str = "[hidden]";

/// A value without what is secret in it, as its variable's name and its own form tell.
fn shown(name: &str, value: &str) -> String {
    let is_secret = ["KEY", "SECRET", "TOKEN", "PASSWORD"].iter().any(|word| name.contains(word));
    if is_secret && !name.ends_with("_FILE") {
        return HIDDEN.to_owned();
    }
    match Url::parse(value) {
        Ok(mut url) if url.password().is_some() || url.query().is_some() => {
            let is_hidden = url.password().is_none() || url.set_password(Some("hidden")).is_ok();
            if !is_hidden {
                return HIDDEN.to_owned();
            }
            url.set_query(url.query().map(|_| "hidden"));
            url.to_string()
        }
        // What is no address in spite of its name may be a slip of the pen with a password in it.
        Err(_) if name.ends_with("_URL") => HIDDEN.to_owned(),
        _ => value.to_owned(),
    }
}

/// Reads settings from a source.
pub(super) struct Reader<'a> {
    source: &'a Source<'a>,
    errors: Vec<ConfigError>,
    settings: BTreeMap<String, Setting>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Source<'a>) -> Self {
        Self { source, errors: Vec::new(), settings: BTreeMap::new() }
    }

    /// Every setting that was read, by name; or everything that is wrong.
    pub(super) fn finish(self) -> Result<Vec<Setting>, ConfigErrors> {
        match self.errors.is_empty() {
            true => Ok(self.settings.into_values().collect()),
            false => Err(ConfigErrors(self.errors)),
        }
    }

    fn note(&mut self, name: &str, value: Option<String>, origin: Origin) {
        let setting = Setting { name: name.to_owned(), value, origin };
        self.settings.insert(name.to_owned(), setting);
    }

    /// Notes what is in force where nobody said anything.
    pub(super) fn note_default(&mut self, name: &str, value: impl ToString) {
        if self.settings.get(name).is_none_or(|setting| setting.origin == Origin::Default) {
            self.note(name, Some(value.to_string()), Origin::Default);
        }
    }

    pub(super) fn error(&mut self, name: &'static str, problem: impl Into<String>) {
        self.errors.push(ConfigError { name, problem: problem.into() });
    }

    /// A value; an empty one counts as none.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let flag = self.source.flags.get(name).cloned();
        let origin = if flag.is_some() { Origin::Flag } else { Origin::Environment };
        let value = flag.or_else(|| (self.source.environment)(name));
        let value = value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        match &value {
            Some(text) => self.note(name, Some(shown(name, text)), origin),
            None if self.settings.contains_key(name) => {}
            None => self.note(name, None, Origin::Default),
        }
        value
    }

    /// A value, or this one where there is none.
    pub(super) fn text_or(&mut self, name: &str, default: &str) -> String {
        self.text(name).unwrap_or_else(|| {
            self.note_default(name, default);
            default.to_owned()
        })
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
        let is_on = self.read_flag(name, default);
        // A switch is no secret, whatever it is about.
        if let Some(setting) = self.settings.get_mut(name) {
            setting.value = Some(is_on.to_string());
        }
        is_on
    }

    fn read_flag(&mut self, name: &'static str, default: bool) -> bool {
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
        let number = self.optional_number(name, range).unwrap_or(default);
        self.note_default(name, number);
        number
    }

    /// A number of retries.
    pub(super) fn small(&mut self, name: &'static str, default: u32) -> u32 {
        let number = self.optional_number(name, 0..=1_000);
        let number = number.and_then(|number| u32::try_from(number).ok()).unwrap_or(default);
        self.note_default(name, number);
        number
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
        let duration = self.optional_duration(name).unwrap_or(default);
        self.note_default(name, humantime::format_duration(duration));
        duration
    }

    /// The same where none at all (`0s`) is fine too.
    pub(super) fn duration_or_none(&mut self, name: &'static str, default: Duration) -> Duration {
        let duration = self.any_duration(name).unwrap_or(default);
        self.note_default(name, humantime::format_duration(duration));
        duration
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
                Ok(text) => {
                    self.note(name, Some(HIDDEN.to_owned()), Origin::File);
                    Some(Some(text))
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        for (name, value, seen) in [
            ("TOKEN_KEY", "hunter2", HIDDEN),
            ("TWILIO_AUTH_TOKEN", "hunter2", HIDDEN),
            ("TOKEN_KEY_FILE", "/run/secrets/token", "/run/secrets/token"),
            ("HTTP_ADDR", "127.0.0.1:0", "127.0.0.1:0"),
            ("DATABASE_URL", "sqlite:/srv/souk.db", "sqlite:/srv/souk.db"),
            ("DATABASE_URL", "postgres://souk@db/souk", "postgres://souk@db/souk"),
            ("DATABASE_URL", "postgres://a:hunter2@db/b", "postgres://a:hidden@db/b"),
            (
                "SMTP_URL",
                "smtps://a:hunter2@mail.example?k=hunter2",
                "smtps://a:hidden@mail.example?hidden",
            ),
            (
                "DATABASE_URL",
                "postgres:///b?host=/run/postgresql&password=hunter2",
                "postgres:///b?hidden",
            ),
            ("DATABASE_URL", "postgres//a:hunter2@db", HIDDEN),
        ] {
            assert_eq!(shown(name, value), seen, "{name}={value}");
        }
    }

    #[test]
    fn every_setting_says_where_it_comes_from() {
        let environment = |name: &str| match name {
            "B" => Some("7".to_owned()),
            "TOKEN_ON" => Some("yes".to_owned()),
            _ => None,
        };
        let source = Source::new(&environment).with_flag("A", Some("5".to_owned()));
        let mut reader = Reader::new(&source);
        for name in ["A", "B", "C"] {
            reader.number(name, 3, 0..=9);
        }
        reader.flag("TOKEN_ON", false);
        reader.duration("D", Duration::from_secs(90));
        assert_eq!(reader.text("E"), None);
        let settings = reader.finish().unwrap();
        let seen: Vec<_> =
            settings.iter().map(|of| (&*of.name, of.value.as_deref(), of.origin)).collect();
        let expected = [
            ("A", Some("5"), Origin::Flag),
            ("B", Some("7"), Origin::Environment),
            ("C", Some("3"), Origin::Default),
            ("D", Some("1m 30s"), Origin::Default),
            ("E", None, Origin::Default),
            ("TOKEN_ON", Some("true"), Origin::Environment),
        ];
        assert_eq!(seen, expected);
    }
}
