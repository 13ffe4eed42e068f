//! `souk demo --seed-market`: fills a running market with sellers, listings, orders and reviews, as
//! people would: through the API.
//!
//! Everything has a name of its own (an address, a stock-keeping unit, an idempotency key), so that a
//! second run finds what the first one made and makes nothing twice, and a run that broke off goes on.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{Client, mailed_token, text};

/// Listings of one seller.
const LISTINGS_PER_SELLER: u32 = 20;
/// The password of everybody who is made up here.
pub(super) const PASSWORD: &str = "a market made of examples";

/// What there is of one kind: the slug of its category, its things, its least price in dong.
struct Kind {
    category: &'static str,
    things: &'static [(&'static str, &'static str)],
    price: i64,
}

const KINDS: &[Kind] = &[
    Kind {
        category: "electronics",
        things: &[
            ("headphones", "Closed cups, a cable of two metres, and the box they came in."),
            ("desk lamp", "Warm light, three steps of brightness, a foot that does not tip over."),
            ("film camera", "The light meter works; a roll of film is in it."),
            ("portable radio", "Receives everything between Hải Phòng and Huế on a good evening."),
        ],
        price: 350_000,
    },
    Kind {
        category: "fashion",
        things: &[
            ("linen shirt", "Washed twice, never ironed. Cut wide."),
            ("wool scarf", "Two metres long and warm enough for Sa Pa."),
            ("leather belt", "One piece of leather, five holes, a buckle of brass."),
            ("rain coat", "Keeps the rain out on a motorbike too."),
        ],
        price: 180_000,
    },
    Kind {
        category: "home",
        things: &[
            ("rice bowl set", "Six bowls from Bát Tràng, no two alike."),
            ("woven basket", "Bamboo, made by hand, carries ten kilograms."),
            ("tea pot", "Holds half a litre and pours without a drop beside the cup."),
            ("wall clock", "Runs on one battery a year and does not tick."),
        ],
        price: 120_000,
    },
    Kind {
        category: "books",
        things: &[
            ("cookery book", "Eighty dishes from the north, with pictures of each."),
            ("atlas", "Folds out to the size of a table. One corner is bent."),
            ("novel", "Read once, on a train. No notes in it."),
            ("dictionary", "Vietnamese and English, forty thousand words."),
        ],
        price: 60_000,
    },
    Kind {
        category: "toys",
        things: &[
            ("wooden train", "An engine, four wagons and three metres of track."),
            ("jigsaw", "A thousand pieces; they have been counted."),
            ("kite", "Flies from a light breeze on. Thirty metres of line."),
            ("chess set", "Turned pieces with felt under them, a board that folds."),
        ],
        price: 90_000,
    },
    Kind {
        category: "sports",
        things: &[
            ("city bicycle", "Seven gears, new brakes, ridden only on Sundays."),
            ("badminton set", "Four rackets, a net and six shuttlecocks."),
            ("swimming goggles", "Tight without pressing; the glass does not mist up."),
            ("tent", "For two people and their rucksacks. Stands in five minutes."),
        ],
        price: 250_000,
    },
];
const LOOKS: &[&str] =
    &["A blue", "An old", "A green", "A hardly used", "A handmade", "A red", "A grey", "A new"];
const NAMES: &[&str] =
    &["Linh", "Minh", "Hoa", "Tuấn", "Mai", "Dũng", "Lan", "Quang", "Thảo", "Sơn", "Ngọc", "Hải"];
const FAMILIES: &[&str] = &["Nguyễn", "Trần", "Lê", "Phạm", "Hoàng", "Vũ", "Đặng", "Bùi"];
const STREETS: &[&str] =
    &["Hàng Bạc", "Tràng Tiền", "Hàng Gai", "Lý Thường Kiệt", "Phan Đình Phùng"];
const PRAISE: &[(u8, &str)] = &[
    (5, "Exactly as described, and it came the next day."),
    (4, "Good. The parcel was a little squashed, the thing in it was not."),
    (5, "Better than in the description. I would buy here again."),
    (3, "It does what it should, but I had to wait for it."),
    (4, "As expected, and the seller answered at once."),
    (2, "It works, but it is older than I thought."),
];

/// One of several, spread evenly by a number.
fn pick<T>(all: &[T], number: u32) -> &T {
    &all[usize::try_from(number).unwrap_or(0) % all.len()]
}

/// The same with no pattern that an eye would find.
fn mixed(number: u32) -> u32 {
    number.wrapping_mul(2_654_435_761) >> 16
}

/// What was made: what was there already does not count.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub listings: u32,
    pub orders: u32,
    pub reviews: u32,
}

/// Somebody who is logged in.
struct Member {
    id: String,
    client: Client,
}

/// Fills the market with so many listings and what belongs to them.
pub(super) async fn seed(url: &str, token: &str, listings: u32) -> anyhow::Result<Made> {
    let visitor = Client::new(url, None);
    let admin = visitor.with_token(token);
    let sellers = listings.div_ceil(LISTINGS_PER_SELLER);
    let (buyers, orders) = (sellers + 2, listings.div_ceil(2));
    let bar = ProgressBar::new(u64::from(sellers + buyers + listings + orders));
    let style = ProgressStyle::with_template("{msg:<24} {wide_bar} {pos}/{len} {eta}");
    bar.set_style(style.context("the bar's template is wrong")?);
    let mut made = Made::default();
    let categories = categories(&visitor).await?;
    bar.set_message("sellers and listings");
    let (mut shops, mut offers) = (Vec::new(), Vec::new());
    for number in 0..sellers {
        let shop = shop(&visitor, &admin, number).await?;
        bar.inc(1);
        let first = number * LISTINGS_PER_SELLER;
        for number in first..listings.min(first + LISTINGS_PER_SELLER) {
            let listing = offer(&shop, &categories, number, &mut made).await?;
            offers.push((shops.len(), listing));
            bar.inc(1);
        }
        shops.push(shop);
    }
    bar.set_message("buyers");
    let mut people = Vec::new();
    for number in 0..buyers {
        let buyer = member(&visitor, &admin, "buyer", number).await?;
        let shop = pick(&shops, mixed(number));
        let path = format!("/api/v1/users/{}/follow", shop.id);
        buyer.client.asked(&path, &json!({}), &[]).await?;
        people.push(buyer);
        bar.inc(1);
    }
    bar.set_message("orders and reviews");
    for number in 0..orders {
        let (shop, listing) = pick(&offers, mixed(number + 7));
        let buyer = pick(&people, number);
        purchase((&shops[*shop], buyer), listing, number, &mut made).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(made)
}

async fn categories(visitor: &Client) -> anyhow::Result<BTreeMap<String, String>> {
    let page = visitor.quiet_get("/api/v1/categories").await?;
    let all = page["data"].as_array().cloned().unwrap_or_default();
    let pair = |of: &Value| (text(of, "slug").to_owned(), text(of, "category_id").to_owned());
    Ok(all.iter().filter(|of| of["active"] == true).map(pair).collect())
}

/// Registers somebody and proves the address, unless that has been done, and logs in.
async fn member(
    visitor: &Client,
    admin: &Client,
    role: &str,
    number: u32,
) -> anyhow::Result<Member> {
    let email = format!("{role}{number}@market.example");
    let who = json!({
        "email": email,
        "password": PASSWORD,
        "first_name": pick(NAMES, mixed(number)),
        "last_name": pick(FAMILIES, number),
    });
    let registered = visitor.asked("/api/v1/users/register", &who, &[409]).await?;
    let is_new = registered.status != 409;
    if !is_new && registered.body["code"] != "email_taken" {
        bail!("{email} cannot register: {}", registered.body);
    }
    let login = json!({ "email": email, "password": PASSWORD });
    if is_new {
        verify(visitor, admin, &email).await?;
    }
    let mut tokens = visitor.asked("/api/v1/auth/login", &login, &[403]).await?;
    if tokens.status == 403 {
        // An earlier run broke off before the address was proved.
        verify(visitor, admin, &email).await?;
        tokens = visitor.asked("/api/v1/auth/login", &login, &[]).await?;
    }
    let client = visitor.with_token(text(&tokens.body, "access_token"));
    Ok(Member { id: text(&tokens.body, "user_id").to_owned(), client })
}

async fn verify(visitor: &Client, admin: &Client, email: &str) -> anyhow::Result<()> {
    let token = mailed_token(admin, email).await?;
    let proof = json!({ "verification_token": token });
    visitor.asked("/api/v1/users/verify-email", &proof, &[]).await?;
    Ok(())
}

/// A seller who may sell.
async fn shop(visitor: &Client, admin: &Client, number: u32) -> anyhow::Result<Member> {
    let seller = member(visitor, admin, "seller", number).await?;
    let business = json!({
        "business_name": format!("{} {}", pick(NAMES, mixed(number)), pick(STREETS, number)),
        "business_address": format!("{} {}, Hà Nội", 3 + number, pick(STREETS, number)),
        "business_phone": format!("+84 24 3926 {:04}", number % 10_000),
    });
    let path = "/api/v1/users/upgrade-to-seller";
    seller.client.asked(path, &business, &[409]).await?;
    let path = format!("/api/v1/admin/sellers/{}/verify", seller.id);
    admin.asked(&path, &json!({}), &[409]).await?;
    Ok(seller)
}

/// Offers the thing of this number, unless it is there; its id.
async fn offer(
    shop: &Member,
    categories: &BTreeMap<String, String>,
    number: u32,
    made: &mut Made,
) -> anyhow::Result<String> {
    let kind = pick(KINDS, number);
    let (thing, description) = pick(kind.things, number / 6);
    let category = categories.get(kind.category).or_else(|| categories.values().next());
    let price = kind.price + i64::from(mixed(number) % 40) * 5_000;
    let body = json!({
        "title": format!("{} {thing}", pick(LOOKS, mixed(number))),
        "description": description,
        "price": { "amount": price, "currency": "VND" },
        "category_id": category.context("there is no active category")?,
        "sku": format!("MARKET-{number:04}"),
        "quantity": 3 + number % 20,
    });
    let client = shop.client.keyed(&format!("market-listing-{number}"));
    let offered = client.asked("/api/v1/listings", &body, &[409]).await?;
    if offered.status == 409 {
        // The key is forgotten after a day, the listing is not.
        return listed(shop, number).await;
    }
    made.listings += u32::from(!offered.replayed);
    Ok(text(&offered.body, "listing_id").to_owned())
}

/// The listing of this number among those of its seller.
async fn listed(shop: &Member, number: u32) -> anyhow::Result<String> {
    let page = shop.client.quiet_get("/api/v1/me/listings?limit=200").await?;
    let sku = format!("MARKET-{number:04}");
    let all = page["data"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|of| text(of, "sku") == sku);
    Ok(text(found.with_context(|| format!("{sku} is not there"))?, "listing_id").to_owned())
}

/// A purchase: most arrive, and most of what arrives is reviewed.
async fn purchase(
    (shop, buyer): (&Member, &Member),
    listing: &str,
    number: u32,
    made: &mut Made,
) -> anyhow::Result<()> {
    let wish = json!({
        "items": [{ "listing_id": listing, "quantity": 1 }],
        "delivery_address": {
            "line1": format!("{} {}", 1 + number % 90, pick(STREETS, mixed(number))),
            "district": "Hoàn Kiếm",
            "city": "Hà Nội",
        },
        "payment_method": "sandbox",
    });
    let client = buyer.client.keyed(&format!("market-order-{number}")).waiting();
    let order = client.asked("/api/v1/orders", &wish, &[409]).await?;
    if order.status == 409 {
        // It was placed more than a day ago, or there is nothing left of what it is for.
        return Ok(());
    }
    made.orders += u32::from(!order.replayed);
    if number % 8 == 7 {
        return Ok(());
    }
    let order_id = text(&order.body, "order_id").to_owned();
    let now = buyer.client.quiet_get(&format!("/api/v1/orders/{order_id}")).await?;
    let shipment = format!("/api/v1/shipments/{}", text(&now, "shipment_id"));
    if text(&now, "status") == "SHIPPED" {
        shop.client.asked(&format!("{shipment}/dispatch"), &json!({}), &[409]).await?;
        buyer.client.asked(&format!("{shipment}/deliver"), &json!({}), &[409]).await?;
    }
    if number % 5 == 4 || now["reviewed"] == true {
        return Ok(());
    }
    completed(buyer, &order_id).await?;
    let (rating, comment) = pick(PRAISE, mixed(number));
    let review = json!({ "transaction_id": order_id, "rating": rating, "comment": comment });
    let reviewed = buyer.client.asked("/api/v1/reviews", &review, &[409]).await?;
    made.reviews += u32::from(reviewed.status != 409);
    Ok(())
}

/// Waits until the order knows that it has arrived.
async fn completed(buyer: &Member, order_id: &str) -> anyhow::Result<()> {
    for _ in 0..super::LOOKS_MAX {
        let order = buyer.client.quiet_get(&format!("/api/v1/orders/{order_id}")).await?;
        if ["DELIVERED", "COMPLETED"].contains(&text(&order, "status")) {
            return Ok(());
        }
        tokio::time::sleep(super::LOOK_EVERY).await;
    }
    bail!("the order {order_id} does not arrive")
}
