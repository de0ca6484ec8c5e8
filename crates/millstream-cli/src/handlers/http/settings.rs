//! The TOML of the `http` handler: [`HttpHandler`].

use millstream_config::{HandlerContext, HandlerKind, Invalid, Secret};
use millstream_core::{Flow, SharedFlow};
use reqwest::{Client, Url, redirect};
use schemars::JsonSchema;
use serde::Deserialize;

use super::post::Post;

/// POSTs each payload to a URL.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpHandler;

/// POSTs each payload to a URL. 2xx is done; 408, 425, 429 and 5xx are retried, not before what `Retry-After`
/// says; everything else is rejected, redirects too.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct HttpSettings {
    /// Where to; `http` or `https`. A user and password in it are sent as basic authentication.
    pub url: Secret,
}

impl HandlerKind for HttpHandler {
    type Settings = HttpSettings;

    fn flow(&self, settings: &HttpSettings, _: &HandlerContext<'_>) -> Result<SharedFlow, Invalid> {
        let invalid = |message: String| {
            Invalid::new(message, "write one as in `url = \"https://example.com/orders\"`").at("url")
        };
        let url = Url::parse(settings.url.expose())
            .map_err(|error| invalid(format!("`url` is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(invalid("`url` is no HTTP URL".to_owned()));
        }
        let client = client(url.scheme() == "https").map_err(|error| {
            Invalid::new(
                format!("no connection could be made secure: {error}"),
                "see that the system has certificates of authorities that it trusts",
            )
        })?;
        let shown = settings.url.redacted_url();
        Ok(Flow::process(Post::new(client, url, shown)).into())
    }
}

fn client(secure: bool) -> reqwest::Result<Client> {
    // Whoever embeds this may have chosen another provider; that one stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = Client::builder()
        .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")))
        // A followed redirect may turn a POST into a GET, whose success would say nothing of the message.
        .redirect(redirect::Policy::none());
    if !secure {
        // The certificates of the system need not be there then, nor be read.
        client = client.tls_certs_only([]);
    }
    client.build()
}
