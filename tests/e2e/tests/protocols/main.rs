//! The relay's protocols, as clients speak them: rightly, wrongly, slowly, in crowds.

mod autobahn;
mod bad_input;
mod chat;
mod examples;
mod http;
mod http_differential;
mod http_gateway;
mod limits;
mod mqtt;
mod mqtt_crowds;
mod mqtt_kills;
mod nonsense;
mod refusals;
mod slow;
mod websocket;
