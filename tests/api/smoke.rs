//! The shortest way through everything.

use crate::support::Server;

#[tokio::test]
async fn a_purchase_is_shipped() {
    let server = Server::start().await;
    let sale = server.sale(2, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.finish().await;
}
