//! The words of the mails: compiled in from `templates/`, filled, escaped.
//!
//! A template is named by what notifications store; a placeholder is `{{name}}`. A page fills them
//! escaped, so that nobody's first name becomes markup, and a subject loses line breaks, so that it
//! becomes no header.

use std::borrow::Cow;
use std::collections::BTreeMap;

const LAYOUT: &str = include_str!("../../templates/layout.html");

/// One mail's words.
struct Template {
    /// As notifications store it; never rename.
    name: &'static str,
    subject: &'static str,
    text: &'static str,
    html: &'static str,
}

macro_rules! templates {
    ($($name:literal: $subject:literal;)+) => {
        &[$(Template {
            name: $name,
            subject: $subject,
            text: include_str!(concat!("../../templates/", $name, ".txt")),
            html: include_str!(concat!("../../templates/", $name, ".html")),
        }),+]
    };
}

static TEMPLATES: &[Template] = templates! {
    "welcome_verification": "Welcome!";
    "email_verified": "Your e-mail address is verified";
    "seller_welcome": "Welcome, seller!";
    "order_confirmation": "Your order {{order_number}}";
};

/// A mail's words, ready to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The subject line.
    pub subject: String,
    /// For those who read text.
    pub text: String,
    /// For those who read pages.
    pub html: String,
}

/// Why a mail cannot be written. Names no values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// No such template in this program.
    #[error("there is no mail template {0}")]
    UnknownTemplate(String),
    /// The notification does not say what the template needs.
    #[error("the mail template {template} needs the parameter {parameter}")]
    MissingParameter {
        /// The template.
        template: &'static str,
        /// What it needs.
        parameter: String,
    },
}

/// Whether there is a mail of this name.
pub fn exists(name: &str) -> bool {
    TEMPLATES.iter().any(|template| template.name == name)
}

/// Writes a mail.
pub fn render(name: &str, values: &BTreeMap<String, String>) -> Result<Rendered, RenderError> {
    let template = TEMPLATES
        .iter()
        .find(|template| template.name == name)
        .ok_or_else(|| RenderError::UnknownTemplate(name.to_owned()))?;
    let fill = |text, escape: fn(&str) -> Cow<'_, str>| {
        fill(text, |parameter| values.get(parameter).map(|value| escape(value).into_owned()))
            .map_err(|parameter| RenderError::MissingParameter {
                template: template.name,
                parameter,
            })
    };
    let subject = fill(template.subject, one_line)?;
    let text = fill(template.text, |value| value.into())?;
    let body = fill(template.html, escaped)?;
    let html = fill_layout(&subject, &body);
    Ok(Rendered { subject, text, html })
}

fn fill_layout(subject: &str, body: &str) -> String {
    fill(LAYOUT, |name| match name {
        "subject" => Some(escaped(subject).into_owned()),
        "body" => Some(body.to_owned()),
        _ => None,
    })
    .expect("the layout is compiled in and has these two placeholders only")
}

/// Replaces each `{{name}}`; the name of the first one without a value is the error. What is
/// filled in is not looked at again.
fn fill(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, behind)) = after.split_once("}}") else { break };
        filled.push_str(before);
        filled.push_str(&value(name).ok_or_else(|| name.to_owned())?);
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Text as it stands in a page, between tags or in a quoted attribute.
fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['&', '<', '>', '"', '\'']) {
        return value.into();
    }
    let mut text = String::with_capacity(value.len() + 16);
    for character in value.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&#39;"),
            other => text.push(other),
        }
    }
    text.into()
}

fn one_line(value: &str) -> Cow<'_, str> {
    if value.contains(char::is_control) {
        value
            .chars()
            .map(|character| if character.is_control() { ' ' } else { character })
            .collect()
    } else {
        value.into()
    }
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
        let rendered = render(
            "welcome_verification",
            &values(&[("first_name", evil), ("verification_token", "T0KEN")]),
        )
        .unwrap();
        assert!(!rendered.html.contains("<script>"), "{}", rendered.html);
        assert!(
            rendered.html.contains("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;")
        );
        assert!(rendered.html.contains("{{verification_token}}!"), "filled in once");
        assert!(rendered.text.contains(evil));
        assert!(rendered.text.contains("T0KEN") && rendered.html.contains("T0KEN"));
        assert_eq!(rendered.subject, "Welcome!");
    }

    #[test]
    fn a_subject_is_one_line() {
        let rendered = render(
            "order_confirmation",
            &values(&[
                ("order_number", "1\r\nBcc: all"),
                ("first_name", "A"),
                ("total", "1 VND"),
                ("tracking_number", "1"),
            ]),
        )
        .unwrap();
        assert_eq!(rendered.subject, "Your order 1  Bcc: all");
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = render("welcome_verification", &values(&[("first_name", "A")])).unwrap_err();
        let parameter = "verification_token".to_owned();
        assert_eq!(
            error,
            RenderError::MissingParameter { template: "welcome_verification", parameter }
        );
        assert_eq!(render("no", &values(&[])), Err(RenderError::UnknownTemplate("no".into())));
    }

    #[test]
    fn every_template_has_whole_placeholders() {
        for template in TEMPLATES {
            for text in [template.subject, template.text, template.html] {
                let filled = fill(text, |name| {
                    assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
                    Some(String::new())
                })
                .unwrap();
                assert!(!filled.contains("{{") && !filled.contains("}}"), "{}", template.name);
            }
        }
    }
}
