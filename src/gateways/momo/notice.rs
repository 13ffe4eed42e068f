//! What MoMo tells by itself (its IPN), once its signature holds.

use serde_json::{Map, Value};

use super::Settings;
use super::client::integer;
use super::codes::{Meaning, meaning};
use super::signature::{holds, raw};

/// What MoMo says became of a payment. Only what is signed is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The order's id at MoMo.
    pub order_id: String,
    /// The key of the call that it began with.
    pub request_id: String,
    /// How many dong.
    pub amount: i64,
    /// MoMo's number of the payment.
    pub trans_id: i64,
    /// The result code.
    pub result_code: i64,
}

impl Notice {
    /// What the code means.
    pub fn meaning(&self) -> Meaning {
        meaning(self.result_code)
    }
}

/// Why something is no notice of MoMo's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotANotice {
    /// A field is missing or not of its kind.
    #[error("{0} is missing or is not what it must be")]
    Malformed(&'static str),
    /// Somebody else's name stands in it, or somebody else signed it.
    #[error("the signature does not hold")]
    NotSigned,
}

/// Reads a notice and believes it only if it is signed with these settings' keys.
pub fn read(settings: &Settings, body: &Map<String, Value>) -> Result<Notice, NotANotice> {
    let number =
        |name: &'static str| body.get(name).and_then(integer).ok_or(NotANotice::Malformed(name));
    // What is missing is signed as empty; so is what is null.
    let text = |name: &'static str| match body.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(NotANotice::Malformed(name)),
    };
    let (amount, response_time) = (number("amount")?, number("responseTime")?);
    let (result_code, trans_id) = (number("resultCode")?, number("transId")?);
    let (order_id, request_id) = (text("orderId")?, text("requestId")?);
    let signed = raw(&[
        ("accessKey", settings.access_key.expose()),
        ("amount", &amount.to_string()),
        ("extraData", text("extraData")?),
        ("message", text("message")?),
        ("orderId", order_id),
        ("orderInfo", text("orderInfo")?),
        ("orderType", text("orderType")?),
        ("partnerCode", text("partnerCode")?),
        ("payType", text("payType")?),
        ("requestId", request_id),
        ("responseTime", &response_time.to_string()),
        ("resultCode", &result_code.to_string()),
        ("transId", &trans_id.to_string()),
    ]);
    let is_signed = holds(&settings.secret_key, &signed, text("signature")?);
    if !is_signed || text("partnerCode")? != settings.partner_code {
        return Err(NotANotice::NotSigned);
    }
    let (order_id, request_id) = (order_id.to_owned(), request_id.to_owned());
    Ok(Notice { order_id, request_id, amount, trans_id, result_code })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::signature::vectors;
    use super::super::tests::settings;
    use super::*;
    use crate::config::Credential;

    /// The notice that a vector was made of.
    fn notice_of(name: &str) -> Map<String, Value> {
        let vector = vectors::named(name);
        let mut body = Map::new();
        for pair in vector.raw.split('&') {
            let (key, value) = pair.split_once('=').unwrap();
            let is_number = ["amount", "responseTime", "resultCode", "transId"].contains(&key);
            let value = if is_number { json!(value.parse::<i64>().unwrap()) } else { json!(value) };
            body.insert(key.to_owned(), value);
        }
        body.remove("accessKey");
        body.insert("signature".to_owned(), json!(vector.signature));
        body
    }

    fn second_set() -> Settings {
        Settings {
            partner_code: "MOMOBKUN20180529".to_owned(),
            access_key: Credential::new("klm05TvNBzhg7h7j"),
            secret_key: Credential::new("at67qH6mk8w5Y1nAyMoYKMWACiEi2bsa"),
            ..settings()
        }
    }

    #[test]
    fn genuine_notices_are_believed() {
        let a = read(&settings(), &notice_of("A")).unwrap();
        assert_eq!((a.amount, a.trans_id, a.meaning()), (50_000, 4_084_757_146, Meaning::Success));
        assert_eq!(a.order_id, "MOMO1721014629740");
        let b = read(&settings(), &notice_of("B")).unwrap();
        assert_eq!((b.amount, b.meaning()), (17_942_000, Meaning::Success));
        let c = read(&second_set(), &notice_of("C")).unwrap();
        assert_eq!(c.meaning(), Meaning::Failed("issuer_declined"));
        assert!(read(&settings(), &notice_of("I")).is_ok());
    }

    #[test]
    fn how_it_is_written_does_not_matter_where_it_is_not_signed() {
        let mut body = notice_of("A");
        body.insert("amount".to_owned(), json!("50000"));
        body.insert("transId".to_owned(), json!("4084757146"));
        body.insert("promotionInfo".to_owned(), json!([{ "amount": 5 }]));
        body.insert("userFee".to_owned(), json!(0));
        body.remove("extraData");
        let signature = body["signature"].as_str().unwrap().to_uppercase();
        body.insert("signature".to_owned(), json!(signature));
        assert!(read(&settings(), &body).is_ok());
    }

    #[test]
    fn whatever_was_signed_and_changed_is_not_believed() {
        for (name, value) in [
            ("amount", json!(50_001)),
            ("resultCode", json!(9_000)),
            ("transId", json!(4_084_757_147_i64)),
            ("responseTime", json!(1_721_014_660_601_i64)),
            ("orderId", json!("MOMO1721014629741")),
            ("requestId", json!("MOMO1721014629741")),
            ("orderInfo", json!("pay%20with%20MoMo")),
            ("message", json!("Thanh cong.")),
            ("extraData", json!("e30=")),
            ("partnerCode", json!("MOMOBKUN20180529")),
            ("signature", json!("")),
        ] {
            let mut body = notice_of("A");
            body.insert(name.to_owned(), value);
            assert_eq!(read(&settings(), &body), Err(NotANotice::NotSigned), "{name}");
        }
        assert_eq!(read(&settings(), &notice_of("C")), Err(NotANotice::NotSigned));
        assert_eq!(read(&second_set(), &notice_of("A")), Err(NotANotice::NotSigned));
    }

    #[test]
    fn what_is_no_notice_says_so() {
        for name in ["amount", "resultCode", "transId", "responseTime"] {
            for value in [json!(null), json!("x"), json!(1.5), json!([])] {
                let mut body = notice_of("A");
                body.insert(name.to_owned(), value);
                assert_eq!(read(&settings(), &body), Err(NotANotice::Malformed(name)));
            }
        }
        let mut body = notice_of("A");
        body.insert("orderId".to_owned(), json!(7));
        assert_eq!(read(&settings(), &body), Err(NotANotice::Malformed("orderId")));
    }
}
