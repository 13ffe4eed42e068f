//! How payments are taken: `MOMO_*`.

use std::time::Duration;

use url::Url;

use super::{Credential, Mode};
use crate::config::reader::Reader;
use crate::gateways::momo::{Language, Settings};

/// MoMo's address for tests; the default in development alone.
const TEST_ENDPOINT: &str = "https://test-payment.momo.vn";
/// How long MoMo says that a client should wait at least.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Longer than this nobody waits: a lane of payments is held meanwhile.
const TIMEOUT_MAX: Duration = Duration::from_secs(120);
/// Any of these says that MoMo is wanted.
const ASKED_FOR: &[&str] =
    &["MOMO_PARTNER_CODE", "MOMO_ACCESS_KEY", "MOMO_SECRET_KEY", "MOMO_SECRET_KEY_FILE"];

/// MoMo's settings; none: it is not offered.
pub(super) fn momo(reader: &mut Reader<'_>, mode: Mode) -> Option<Settings> {
    if !ASKED_FOR.iter().any(|name| reader.text(name).is_some()) {
        return None;
    }
    let default = mode.is_development().then_some(TEST_ENDPOINT);
    let endpoint = endpoint(reader, mode, default);
    let partner_code = required(reader, "MOMO_PARTNER_CODE");
    let access_key = required(reader, "MOMO_ACCESS_KEY");
    let secret_key = reader.credential("MOMO_SECRET_KEY", "MoMo");
    let ipn_url = ipn_url(reader);
    let redirect_url = reader.text("MOMO_REDIRECT_URL").unwrap_or_default();
    if !(redirect_url.is_empty() || is_web(&redirect_url)) {
        reader.error("MOMO_REDIRECT_URL", "must be an address (https://shop.example/paid)");
    }
    let language = match reader.text("MOMO_LANGUAGE").as_deref() {
        None | Some("vi") => Language::Vietnamese,
        Some("en") => Language::English,
        Some(_) => {
            reader.error("MOMO_LANGUAGE", "must be vi or en");
            Language::default()
        }
    };
    let auto_capture = reader.flag("MOMO_AUTO_CAPTURE", true);
    let timeout = reader.duration("MOMO_TIMEOUT", TIMEOUT_DEFAULT);
    if timeout > TIMEOUT_MAX {
        reader.error("MOMO_TIMEOUT", "must be at most 2m");
    }
    Some(Settings {
        endpoint: endpoint?,
        partner_code: partner_code?,
        access_key: Credential::new(access_key?),
        secret_key,
        ipn_url: ipn_url?,
        redirect_url,
        language,
        auto_capture,
        timeout,
    })
}

fn required(reader: &mut Reader<'_>, name: &'static str) -> Option<String> {
    let text = reader.text(name);
    if text.is_none() {
        reader.error(name, "is required where MoMo is used");
    }
    text
}

fn is_web(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "https" | "http") && url.has_host())
}

/// Keys of one environment must not meet the address of the other, so production says which.
fn endpoint(reader: &mut Reader<'_>, mode: Mode, default: Option<&str>) -> Option<String> {
    let Some(text) = reader.text("MOMO_ENDPOINT").or_else(|| default.map(str::to_owned)) else {
        let problem = "is required in production (https://payment.momo.vn)";
        reader.error("MOMO_ENDPOINT", problem);
        return None;
    };
    let text = text.trim_end_matches('/').to_owned();
    let plain = |url: &Url| url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let named = |url: &Url| url.has_host() && url.username().is_empty() && url.password().is_none();
    let parsed = Url::parse(&text).ok().filter(|url| plain(url) && named(url));
    match parsed.as_ref().map(Url::scheme) {
        Some("https") => Some(text),
        Some("http") if mode.is_development() => Some(text),
        _ => {
            let problem = "must be an https address without a path (https://payment.momo.vn)";
            reader.error("MOMO_ENDPOINT", problem);
            None
        }
    }
}

/// MoMo takes no address with a query, spaces or anything but ASCII.
fn ipn_url(reader: &mut Reader<'_>) -> Option<String> {
    let text = required(reader, "MOMO_IPN_URL")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte);
    if is_web(&text) && text.bytes().all(plain) {
        return Some(text);
    }
    let problem = "must be the address at which MoMo reaches this service, without a query \
        (https://shop.example/api/v1/payments/webhook/momo)";
    reader.error("MOMO_IPN_URL", problem);
    None
}
