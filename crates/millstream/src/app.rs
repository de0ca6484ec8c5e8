//! A program of one's own flows: [`App`].

use std::path::Path;
use std::process::ExitCode;

use millstream_config::{Config, Diagnostics, HandlerKind, Registry, SinkKind, SourceKind};
use millstream_core::{Host, SharedFlow, StartError};

/// The stock connectors and handlers, with flows, handlers and connectors of one's own.
///
/// ```no_run
/// # use millstream::prelude::*;
/// # struct Audit;
/// # impl Processor for Audit {
/// #     type Input = String;
/// #     type Output = ();
/// #     async fn process(&self, _: String, _: &mut Context<'_>) -> Result<(), Failure> { Ok(()) }
/// # }
/// fn main() -> std::process::ExitCode {
///     App::new().pipeline("audit", Flow::process(Audit)).main()
/// }
/// ```
///
/// In the file, `[pipelines.audit]` then runs this flow, and so does any other pipeline with
/// `handler = "audit"`.
#[derive(Debug)]
pub struct App {
    registry: Registry,
}

impl Default for App {
    fn default() -> Self {
        Self::new()
    }
}

impl App {
    /// The stock connectors and handlers of this build.
    pub fn new() -> Self {
        Self::with(millstream_cli::stock())
    }

    /// What this registry knows, and nothing else.
    pub fn with(registry: Registry) -> Self {
        Self { registry }
    }

    /// The flow of the pipeline of this name, and of those with `handler = "name"`.
    #[must_use]
    pub fn pipeline(mut self, name: &str, flow: impl Into<SharedFlow>) -> Self {
        self.registry.flow(name, flow);
        self
    }

    /// `handler = "name"`: a flow made from keys in the processor's table.
    #[must_use]
    pub fn handler<K: HandlerKind>(mut self, name: &str, kind: K) -> Self {
        self.registry.handler(name, kind);
        self
    }

    /// `type = "name"` of a source.
    #[must_use]
    pub fn source<K: SourceKind>(mut self, name: &str, kind: K) -> Self {
        self.registry.source(name, kind);
        self
    }

    /// `type = "name"` of a sink or of dead letters.
    #[must_use]
    pub fn sink<K: SinkKind>(mut self, name: &str, kind: K) -> Self {
        self.registry.sink(name, kind);
        self
    }

    /// `type = "name"` of both.
    #[must_use]
    pub fn connector<K: SourceKind + SinkKind + Clone>(mut self, name: &str, kind: K) -> Self {
        self.registry.connector(name, kind);
        self
    }

    /// Runs the command that the process's arguments ask for: `run`, `check`, `schema`, `publish`.
    pub fn main(self) -> ExitCode {
        millstream_cli::main(self.registry)
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn config(&self, path: impl AsRef<Path>) -> Result<Config, Diagnostics> {
        Config::load(path, &self.registry)
    }

    /// Checks a text; `name` is what errors call it. Variables come from the environment.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn config_from(&self, text: &str, name: &str) -> Result<Config, Diagnostics> {
        Config::parse(text, name, &self.registry, &|name| std::env::var(name).ok())
    }

    /// Starts the pipelines in the runtime that runs this, and gives the handle of all of them.
    ///
    /// Logging, signals and the listener, a [`Listener`](millstream_ops::Listener), are left to the program; so is
    /// the end, which is [`Host::drain`] with
    /// [`shutdown_timeout`](millstream_config::HostSpec::shutdown_timeout).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use millstream::cli::MemoryKind;
    /// use millstream::prelude::*;
    ///
    /// struct Shout;
    ///
    /// impl Processor for Shout {
    ///     type Input = String;
    ///     type Output = Outgoing;
    ///
    ///     async fn process(&self, text: String, _: &mut Context<'_>) -> Result<Outgoing, Failure> {
    ///         Ok(text.to_uppercase().into())
    ///     }
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// let memory = MemoryKind::default();
    /// let app = App::new()
    ///     .connector("memory", memory.clone())
    ///     .pipeline("shout", Flow::process(Shout).sink("out"));
    /// let config = app.config_from(
    ///     r#"
    ///     [pipelines.shout.source]
    ///     type = "memory"
    ///
    ///     [pipelines.shout.batchers.out]
    ///     sink = { type = "memory", queue = "loud" }
    ///     "#,
    ///     "shout.toml",
    /// )?;
    /// let timeout = config.host.shutdown_timeout;
    /// memory.queue("shout").publish(Message::new("hello"));
    ///
    /// let host = app.start(config).await?;
    /// host.idle(Duration::from_millis(10)).await;
    /// host.drain(timeout).await;
    /// assert_eq!(memory.queue("loud").messages()[0].payload, "HELLO");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    ///
    /// # Cancel safety
    /// Cancel safe: it does not wait.
    pub async fn start(&self, config: Config) -> Result<Host, StartError> {
        Host::start(config.pipelines.into_iter().map(|pipeline| pipeline.spec))
    }
}
