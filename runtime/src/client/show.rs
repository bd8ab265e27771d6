//! Requests of the command line to a server: JSON to show, and changes that can be repeated.

use std::time::Duration;

use stead_entities::{Error, ErrorKind, operation::Reply};

use super::{
    CONNECT_DEADLINE, CONTENT_TYPE, Client, HeaderValue, JSON, Method, Prepared, StatusCode,
    Timeout, Url,
};

/// A request by its method.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    /// Shows something: 200.
    Get,
    /// Changes something: 202 once that is durable.
    Post,
    /// Ends something: 204.
    Delete,
}

impl Client {
    /// Reads the JSON that the server shows under a path.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where it cannot be reached, and what it answers instead.
    pub(crate) async fn show(&self, path: &[&str]) -> Result<serde_json::Value, Error> {
        self.show_with(path, &[]).await
    }

    /// Reads the JSON that the server shows under a path, with parameters.
    ///
    /// # Errors
    /// As [`Client::show`].
    pub(crate) async fn show_with(
        &self,
        path: &[&str],
        parameters: &[(&str, &str)],
    ) -> Result<serde_json::Value, Error> {
        let url = self.url_with(path, parameters);
        read(self.once(&Prepared::bare(Method::GET, url), CONNECT_DEADLINE).await?)
    }

    /// Sends a request once, and reads the JSON that is answered; `null` where there is none.
    ///
    /// # Errors
    /// As [`Client::show`].
    pub(crate) async fn ask(
        &self,
        ask: Ask,
        (path, parameters): (&[&str], &[(&str, String)]),
        body: Vec<u8>,
        deadline: Duration,
    ) -> Result<serde_json::Value, Error> {
        let url = self.url_with(path, parameters);
        let (method, success) = match ask {
            Ask::Get => (Method::GET, StatusCode::OK),
            Ask::Post => (Method::POST, StatusCode::ACCEPTED),
            Ask::Delete => (Method::DELETE, StatusCode::NO_CONTENT),
        };
        let mut asked = Prepared { success, body, ..Prepared::bare(method, url) };
        asked.headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        match self.once(&asked, deadline).await? {
            Ok(json) if json.is_empty() => Ok(serde_json::Value::Null),
            answer => read(answer),
        }
    }

    /// Posts to a path, with parameters, what does no harm when it is repeated, and reads the JSON that is
    /// answered.
    ///
    /// # Errors
    /// As [`Client::show`].
    pub(crate) async fn change(
        &self,
        path: &[&str],
        parameters: &[(&str, &str)],
        deadline: Duration,
    ) -> Result<serde_json::Value, Error> {
        let url = self.url_with(path, parameters);
        let asked = Prepared::bare(Method::POST, url);
        read(self.until_answered(&asked, Timeout::new(deadline, true)).await?)
    }
}

impl Client {
    fn url_with<V: AsRef<str>>(&self, path: &[&str], parameters: &[(&str, V)]) -> Url {
        let mut url = self.url(path);
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        url
    }
}

/// The JSON of an answer.
fn read(answer: Reply) -> Result<serde_json::Value, Error> {
    let shown = answer.map_err(|no| Error::new(ErrorKind::Invalid, no.reason()))?;
    serde_json::from_slice(&shown)
        .map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))
}
