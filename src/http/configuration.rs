//! The settings in force, as whoever runs the service may look at them.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::{Answer, Page};
use super::call::Staff;
use crate::config::{Origin, Setting};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(get_config))
}

/// A setting.
#[derive(Debug, Serialize, ToSchema)]
pub struct SettingBody {
    /// The name of its variable.
    #[schema(example = "HTTP_ADDR")]
    pub name: String,
    /// Its value; `[hidden]` if it is a secret, null where it has none or only a default that has no
    /// short form.
    pub value: Option<String>,
    /// Where the value comes from: `flag`, `environment`, `file` or `default`.
    #[schema(example = "environment")]
    pub source: &'static str,
}

impl From<&Setting> for SettingBody {
    fn from(setting: &Setting) -> Self {
        let source = match setting.origin {
            Origin::Flag => "flag",
            Origin::Environment => "environment",
            Origin::File => "file",
            Origin::Default => "default",
        };
        Self { name: setting.name.clone(), value: setting.value.clone(), source }
    }
}

/// The settings in force
///
/// By name, each with where its value comes from. Secrets are hidden.
#[utoipa::path(get, path = "/admin/config", tag = "admin",
    responses((status = 200, description = "All of them", body = Page<SettingBody>)))]
async fn get_config(State(app): State<App>, _: Staff) -> Answer<Page<SettingBody>> {
    Answer::ok(Page::whole(app.settings().settings.iter().map(SettingBody::from).collect()))
}
