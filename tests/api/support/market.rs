//! What people do in the marketplace.

use serde_json::{Value, json};

use super::{Answer, Client, Person, Server, eventually};

/// The price of what the tests sell, in dong.
pub const PRICE: i64 = 150_000;

/// An order that was placed.
#[derive(Debug, Clone)]
pub struct Order {
    pub id: String,
    /// Names everything that it led to.
    pub correlation_id: String,
    /// The answer to placing it.
    pub answer: Answer,
}

/// Where to deliver to.
pub fn address() -> Value {
    json!({
        "recipient": "Aunt Agatha",
        "line1": "3 Larkspur Crescent",
        "district": "Hoàn Kiếm",
        "city": "Hà Nội",
        "phone": "+84901234567",
    })
}

/// What it takes to buy `quantity` of a listing.
pub fn wish(listing_id: &str, quantity: u32, method: &str) -> Value {
    json!({
        "items": [{ "listing_id": listing_id, "quantity": quantity }],
        "delivery_address": address(),
        "payment_method": method,
    })
}

impl Server {
    /// An active category.
    pub async fn category(&self) -> String {
        let page = self.visitor().get("/api/v1/categories").await.expect(200);
        page.items()[0]["category_id"].as_str().unwrap().to_owned()
    }

    /// A category is switched on or off: `activate`, `deactivate`.
    pub async fn switch(&self, category: &str, verb: &str) {
        let path = format!("/api/v1/admin/categories/{category}/{verb}");
        self.admin().post(&path, &json!({})).await.expect(200);
    }

    /// What it takes to offer something.
    pub async fn offer(&self, quantity: u32) -> Value {
        json!({
            "title": "A blue bicycle",
            "description": "Ridden only on Sundays.",
            "price": { "amount": PRICE, "currency": "VND" },
            "category_id": self.category().await,
            "quantity": quantity,
        })
    }

    /// Offers `quantity` of something; returns its id.
    pub async fn listing(&self, seller: &Person, quantity: u32) -> String {
        let offer = self.offer(quantity).await;
        seller.client.post("/api/v1/listings", &offer).await.expect(201).text("listing_id")
    }

    /// A listing as it is now.
    pub async fn listing_now(&self, listing_id: &str) -> Answer {
        self.visitor().get(&format!("/api/v1/listings/{listing_id}")).await.expect(200)
    }

    /// How much of a listing is available, reserved and sold.
    pub async fn stock(&self, listing_id: &str) -> (i64, i64, i64) {
        let listing = self.listing_now(listing_id).await;
        let number = |name: &str| listing[name].as_i64().unwrap();
        (number("available_quantity"), number("reserved_quantity"), number("sold_quantity"))
    }

    /// Orders something, and does not wait for what follows.
    pub async fn place_order(
        &self,
        client: &Client,
        listing_id: &str,
        quantity: u32,
        method: &str,
    ) -> Order {
        let answer = client.post("/api/v1/orders", &wish(listing_id, quantity, method)).await;
        order_of(answer)
    }

    /// Orders one of a listing and has it delivered; returns the completed order.
    pub async fn delivered(&self, buyer: &Client, listing_id: &str) -> String {
        let order = self.place_order(buyer, listing_id, 1, "sandbox").await.id;
        self.arrives(&order, &self.admin(), buyer).await;
        order
    }

    /// What was ordered is sent by one, and its buyer says that it is there.
    pub async fn arrives(&self, order: &str, sender: &Client, buyer: &Client) {
        let shipped = self.order_eventually(order, "SHIPPED").await;
        let path = format!("/api/v1/shipments/{}", shipped.text("shipment_id"));
        sender.post(&format!("{path}/dispatch"), &json!({})).await.expect(200);
        buyer.post(&format!("{path}/deliver"), &json!({})).await.expect(200);
        self.order_eventually(order, "COMPLETED").await;
    }

    /// A seller, a buyer, a listing of `stock` units and an order of `quantity` of them.
    pub async fn sale(&self, stock: u32, quantity: u32, method: &str) -> Sale {
        let (seller, buyer) = (self.seller("Sam").await, self.buyer("Bea").await);
        let listing_id = self.listing(&seller, stock).await;
        let order = self.place_order(&buyer.client, &listing_id, quantity, method).await;
        Sale { seller, buyer, listing_id, order }
    }

    /// An order as an administrator sees it now.
    pub async fn order_now(&self, order_id: &str) -> Answer {
        self.admin().get(&format!("/api/v1/orders/{order_id}")).await.expect(200)
    }

    /// Waits until an order has this status.
    pub async fn order_eventually(&self, order_id: &str, status: &str) -> Answer {
        eventually(&format!("order {order_id} to be {status}"), || async {
            Some(self.order_now(order_id).await).filter(|order| order["status"] == status)
        })
        .await
    }

    /// Every status that an order has had.
    pub async fn history(&self, order_id: &str) -> Vec<String> {
        let answer = self.admin().get(&format!("/api/v1/orders/{order_id}/history")).await;
        let answer = answer.expect(200);
        let statuses = answer["statuses"].as_array().unwrap();
        statuses.iter().map(|status| status.as_str().unwrap().to_owned()).collect()
    }

    /// The escrow of an order.
    pub async fn escrow(&self, order_id: &str) -> Answer {
        self.admin().get(&format!("/api/v1/orders/{order_id}/escrow")).await.expect(200)
    }

    /// What the payment provider was asked for, in order: `charge`, `refund`.
    pub async fn gateway_calls(&self) -> Vec<String> {
        let calls = self.visitor().get("/api/v1/dev/payments").await.expect(200);
        let operations = calls.items().iter().rev();
        operations.map(|call| call["operation"].as_str().unwrap().to_owned()).collect()
    }

    /// The saga of an order, with its history.
    pub async fn saga(&self, order_id: &str) -> Value {
        self.caught_up("sagas-view").await;
        let admin = self.admin();
        let page = admin.get(&format!("/api/v1/admin/sagas?order_id={order_id}")).await;
        let page = page.expect(200);
        assert_eq!(page.items().len(), 1, "{page:?}");
        let saga_id = page.items()[0]["saga_id"].as_str().unwrap().to_owned();
        admin.get(&format!("/api/v1/admin/sagas/{saga_id}")).await.expect(200).json().clone()
    }
}

/// What [`Server::sale`] made.
pub struct Sale {
    pub seller: Person,
    pub buyer: Person,
    pub listing_id: String,
    pub order: Order,
}

/// The order that an answer tells of.
#[track_caller]
pub fn order_of(answer: Answer) -> Order {
    let answer = answer.expect(201);
    let correlation_id = answer.header("x-correlation-id").to_owned();
    Order { id: answer.text("order_id"), correlation_id, answer }
}
