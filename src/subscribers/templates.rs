//! The words of messages: Jinja templates, compiled in from `templates/`, each file replaced by one of
//! the same name in a folder of the operator's (`TEMPLATES_DIR`).
//!
//! A template is named by what notifications store. `<name>.txt` has the subject (a title, inside the
//! marketplace) in its first line and then the words; `<name>.html` is the page of a mail, put into
//! `layout.html`; `<name>.sms.txt` is a text message, all of it. A page fills its gaps escaped, so that nobody's first
//! name becomes markup, and a subject is one line, so that it becomes no header. A gap without a value
//! is an error.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};

/// How the first line of a `.txt` begins.
const SUBJECT: &str = "Subject: ";
/// How the names of text messages end, before `.txt`.
const SMS: &str = ".sms";
/// The largest template that is read from a folder.
const FILE_BYTES_MAX: u64 = 256 * 1024;

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../../templates/", $name)))),+]
    };
}

/// Every file. A template is stored by its name: never rename one.
static FILES: &[(&str, &str)] = files![
    "layout.html",
    "account_reinstated.html",
    "account_reinstated.txt",
    "account_suspended.html",
    "account_suspended.txt",
    "invoice.html",
    "dead_letter.txt",
    "dispute_opened.txt",
    "dispute_resolved.html",
    "dispute_resolved.txt",
    "email_verified.html",
    "email_verified.txt",
    "new_listing.txt",
    "new_order.txt",
    "new_review.html",
    "new_review.txt",
    "notice_escalated.html",
    "notice_escalated.txt",
    "order_cancelled.html",
    "order_cancelled.txt",
    "order_completed.txt",
    "order_confirmation.html",
    "order_confirmation.txt",
    "order_delivered.txt",
    "order_disputed.txt",
    "order_failed.html",
    "order_failed.txt",
    "order_paid.txt",
    "order_payment_failed.html",
    "order_payment_failed.txt",
    "order_placed.html",
    "order_placed.sms.txt",
    "order_placed.txt",
    "order_rejected.html",
    "order_rejected.txt",
    "order_shipped.sms.txt",
    "order_shipped.txt",
    "password_changed.html",
    "password_changed.txt",
    "password_reset.html",
    "password_reset.txt",
    "payment_received.sms.txt",
    "payment_received.txt",
    "payment_rejected.txt",
    "price_drop.txt",
    "receipt.html",
    "receipt.txt",
    "refund_refused.txt",
    "report_daily.html",
    "report_daily.txt",
    "report_hourly.html",
    "report_hourly.txt",
    "return_accepted.html",
    "return_accepted.txt",
    "return_refused.html",
    "return_refused.txt",
    "return_requested.html",
    "return_requested.txt",
    "sale_receipt.html",
    "sale_receipt.txt",
    "seller_onboarding.txt",
    "seller_pending.txt",
    "seller_rejected.html",
    "seller_rejected.txt",
    "seller_verified.html",
    "seller_verified.txt",
    "seller_welcome.html",
    "seller_welcome.txt",
    "welcome_verification.html",
    "welcome_verification.txt",
];

/// A message's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The subject line, or the title.
    pub subject: String,
    /// For those who read text.
    pub text: String,
    /// For those who read pages; empty: there is no page.
    pub html: String,
}

/// Why a message cannot be written. Names no values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// No such template in this program.
    #[error("there is no template {0}")]
    UnknownTemplate(String),
    /// It cannot be filled with what the notification says.
    #[error("the template {file} cannot be filled in line {line}: {problem}")]
    Unusable {
        /// The file.
        file: String,
        /// The line.
        line: usize,
        /// What is wrong.
        problem: ErrorKind,
    },
}

/// Why a folder of templates is refused.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be read.
    #[error("{path} cannot be read: {error}")]
    Unreadable {
        /// The folder or file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Nobody would ever look at it.
    #[error("{0} replaces no template; the names are those of the templates that come with souk")]
    Unknown(String),
    /// It is no template.
    #[error("{file} is no template: line {line}: {problem}")]
    Invalid {
        /// The file.
        file: String,
        /// The line.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

/// All templates.
#[derive(Debug)]
pub struct Templates(Environment<'static>);

impl Templates {
    /// Those that are compiled in.
    pub fn built_in() -> Self {
        Self::from(&|_| None).expect("what is compiled in is tested")
    }

    /// The same, but for those files that a folder has.
    pub fn of_folder(folder: &Path) -> Result<Self, FolderError> {
        let found = read_folder(folder)?;
        for name in found.keys() {
            if !FILES.iter().any(|(known, _)| known == name) {
                return Err(FolderError::Unknown(folder.join(name).display().to_string()));
            }
        }
        Self::from(&|name| found.get(name).cloned())
    }

    fn from(replaced: &dyn Fn(&str) -> Option<String>) -> Result<Self, FolderError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|name| {
            if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None }
        });
        for (name, built_in) in FILES {
            let source = replaced(name).unwrap_or_else(|| (*built_in).to_owned());
            let mut parts = vec![((*name).to_owned(), source.clone())];
            if let Some(stem) = name.strip_suffix(".txt").filter(|stem| !stem.ends_with(SMS)) {
                let Some((subject, text)) = split(&source) else {
                    return Err(FolderError::Invalid {
                        file: (*name).to_owned(),
                        line: 1,
                        problem: format!("must begin with \"{SUBJECT}\""),
                    });
                };
                parts[0].1 = text.to_owned();
                parts.push((format!("{stem}.subject"), subject.to_owned()));
            }
            for (part, source) in parts {
                let added = environment.add_template_owned(part, source);
                added.map_err(|error| FolderError::Invalid {
                    file: (*name).to_owned(),
                    line: error.line().unwrap_or(1),
                    problem: error.detail().map_or_else(|| error.kind().to_string(), str::to_owned),
                })?;
            }
        }
        Ok(Self(environment))
    }

    fn has(&self, file: &str) -> bool {
        self.0.get_template(file).is_ok()
    }

    fn fill(&self, file: &str, values: impl Into<Value>) -> Result<String, RenderError> {
        let unusable = |error: minijinja::Error| RenderError::Unusable {
            file: error.name().unwrap_or(file).to_owned(),
            line: error.line().unwrap_or(0),
            problem: error.kind(),
        };
        let template = self.0.get_template(file).map_err(unusable)?;
        template.render(values).map_err(unusable)
    }

    /// Writes a page by itself, from texts and one list whose lines have texts.
    pub fn page(
        &self,
        file: &str,
        texts: BTreeMap<&'static str, String>,
        (list, lines): (&'static str, Vec<BTreeMap<&'static str, String>>),
    ) -> Result<String, RenderError> {
        let named = |texts: BTreeMap<&'static str, String>| -> BTreeMap<String, Value> {
            texts.into_iter().map(|(name, text)| (name.to_owned(), Value::from(text))).collect()
        };
        let lines: Vec<Value> = lines.into_iter().map(|line| Value::from(named(line))).collect();
        let mut values = named(texts);
        values.insert(list.to_owned(), Value::from(lines));
        self.fill(file, values)
    }

    /// Writes a message: a mail, or what is read inside the marketplace.
    pub fn render(
        &self,
        name: &str,
        values: &BTreeMap<String, String>,
    ) -> Result<Rendered, RenderError> {
        let (subject, page) = (format!("{name}.subject"), format!("{name}.html"));
        if !self.has(&subject) {
            return Err(RenderError::UnknownTemplate(name.to_owned()));
        }
        let subject = one_line(&self.fill(&subject, values.clone())?);
        let text = self.fill(&format!("{name}.txt"), values.clone())?;
        let html = if self.has(&page) {
            let body = Value::from_safe_string(self.fill(&page, values.clone())?);
            let values = BTreeMap::from([
                ("subject".to_owned(), Value::from(subject.clone())),
                ("body".to_owned(), body),
            ]);
            self.fill("layout.html", values)?
        } else {
            String::new()
        };
        Ok(Rendered { subject, text, html })
    }
}

impl Templates {
    /// Writes a text message: one line.
    pub fn sms(
        &self,
        name: &str,
        values: &BTreeMap<String, String>,
    ) -> Result<String, RenderError> {
        let file = format!("{name}{SMS}.txt");
        if !self.has(&file) {
            return Err(RenderError::UnknownTemplate(file));
        }
        Ok(one_line(self.fill(&file, values.clone())?.trim()))
    }
}

/// The subject and the words.
fn split(text: &str) -> Option<(&str, &str)> {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let rest = rest.trim_start_matches(['\r', '\n']);
    Some((first.trim_end().strip_prefix(SUBJECT)?, rest))
}

fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// The templates of a folder, by their names; other files are none of ours.
fn read_folder(folder: &Path) -> Result<BTreeMap<String, String>, FolderError> {
    let unreadable = |path: &Path| {
        let path = path.display().to_string();
        move |error| FolderError::Unreadable { path, error }
    };
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable(folder))? {
        let path = entry.map_err(unreadable(folder))?.path();
        let is_template = path.extension().is_some_and(|of| of == "txt" || of == "html");
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !is_template {
            continue;
        }
        let size = std::fs::metadata(&path).map_err(unreadable(&path))?.len();
        if size > FILE_BYTES_MAX {
            let error = std::io::Error::other("it is larger than 256 KiB");
            return Err(unreadable(&path)(error));
        }
        let text = std::fs::read_to_string(&path).map_err(unreadable(&path))?;
        found.insert(name.to_owned(), text);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_page_shows_a_name_and_never_runs_it() {
        let evil = r#"<script>alert("x")</script>&'{{verification_token}}"#;
        let rendered = Templates::built_in()
            .render(
                "welcome_verification",
                &values(&[("first_name", evil), ("verification_token", "T0KEN")]),
            )
            .unwrap();
        assert!(!rendered.html.contains("<script>"), "{}", rendered.html);
        assert!(rendered.html.contains("&lt;script&gt;alert(&quot;x&quot;)"), "{}", rendered.html);
        assert!(rendered.html.contains("{{verification_token}}!"), "filled in once");
        assert!(rendered.html.contains("<h1>"), "the layout takes the page as it is");
        assert!(rendered.text.contains(evil));
        assert!(rendered.text.contains("T0KEN") && rendered.html.contains("T0KEN"));
        assert_eq!(rendered.subject, "Welcome!");
    }

    #[test]
    fn a_subject_is_one_line() {
        let values = values(&[
            ("order_number", "1\r\nBcc: all"),
            ("first_name", "A"),
            ("total", "1 VND"),
            ("tracking_number", "1"),
        ]);
        let rendered = Templates::built_in().render("order_confirmation", &values).unwrap();
        assert_eq!(rendered.subject, "Your order 1  Bcc: all");
    }

    #[test]
    fn what_is_missing_is_an_error_that_says_where() {
        let templates = Templates::built_in();
        let error = templates.render("welcome_verification", &values(&[("first_name", "A")]));
        let told = error.unwrap_err().to_string();
        assert!(told.contains("welcome_verification.txt") && told.contains("undefined"), "{told}");
        let unknown = templates.render("no", &values(&[]));
        assert_eq!(unknown, Err(RenderError::UnknownTemplate("no".into())));
    }

    #[test]
    fn a_folder_replaces_files_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("email_verified.txt", "Subject: Hi {{ first_name }}\n\nAll is {{ 'well'|upper }}.\n");
        write("README.md", "not a template");
        let told = Templates::of_folder(folder.path())
            .unwrap()
            .render("email_verified", &values(&[("first_name", "Ann")]))
            .unwrap();
        assert_eq!((told.subject.as_str(), told.text.trim_end()), ("Hi Ann", "All is WELL."));
        assert!(told.html.contains("Ann"), "the page is the one that is compiled in");
        for (name, text, problem) in [
            ("seller_welcom.txt", "Subject: x\n\n", "replaces no template"),
            ("receipt.txt", "no subject", "must begin with"),
            ("receipt.html", "one\n{{ first_name", "line 2"),
        ] {
            write(name, text);
            let error = Templates::of_folder(folder.path()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(problem), "{error}");
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
        let missing = Templates::of_folder(&folder.path().join("nowhere")).unwrap_err();
        assert!(missing.to_string().contains("nowhere cannot be read"), "{missing}");
    }

    #[test]
    fn every_file_is_compiled_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
        let there: Vec<_> = read_folder(&folder).unwrap().into_keys().collect();
        let mut known: Vec<_> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        known.sort();
        assert_eq!(known, there);
        Templates::built_in();
    }
}
