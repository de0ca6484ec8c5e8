//! SIGHUP: the file is read again, and what has changed in it is taken over.
//!
//! What may change while a pipeline runs changes at once. Where other keys of a pipeline differ, it alone is drained and
//! started again; new ones are started, and those that are gone are drained. A pipeline whose table says the same is not
//! touched. A file that is wrong in any part changes nothing at all.

use std::collections::BTreeMap;
use std::path::Path;

use millstream_config::{Config, Fixed, HostSpec, PipelineConfig, Registry};
use millstream_core::rt::{Duration, Tasks};
use millstream_core::{Condition, DrainReport, Host, Pipeline, PipelineSpec};
use tracing::{error, info, warn};

use crate::load;

/// What runs, and the file that says so.
pub(crate) struct Reloader<'a> {
    file: &'a Path,
    registry: &'a Registry,
    host: Host,
    settings: HostSpec,
    /// What each pipeline was started with.
    running: BTreeMap<String, Fixed>,
}

/// What becomes of a pipeline that does not simply run on.
enum Task {
    Restart(Pipeline, Box<PipelineSpec>),
    Remove(String),
}

impl<'a> Reloader<'a> {
    /// For a host that was started with this configuration.
    pub(crate) fn new(file: &'a Path, registry: &'a Registry, host: Host, config: &Config) -> Self {
        Self {
            file,
            registry,
            host,
            settings: config.host.clone(),
            running: fixed(&config.pipelines),
        }
    }

    /// How long a shutdown may take, as the file says now.
    pub(crate) fn shutdown_timeout(&self) -> Duration {
        self.settings.shutdown_timeout
    }

    /// Reads the file and takes over what has changed, or says what is wrong with it and changes nothing.
    ///
    /// # Cancel safety
    /// Dropped, drains that have begun go on, and nothing is started any more.
    pub(crate) async fn reload(&mut self) {
        let file = self.file.display();
        let config = match self.read() {
            Ok(config) => config,
            Err(diagnostics) => {
                error!(%file, "not reloaded, all goes on as it was: {diagnostics}");
                return;
            }
        };
        self.take_host(&config.host);
        let named = fixed(&config.pipelines);
        let gone = self.running.keys().filter(|name| !named.contains_key(*name));
        let mut tasks: Vec<_> = gone.cloned().map(Task::Remove).collect();
        let mut new = Vec::new();
        for PipelineConfig { spec, fixed, .. } in config.pipelines {
            let (Some(before), Some(pipeline)) =
                (self.running.get(&*spec.name), self.host.pipeline(&spec.name))
            else {
                new.push(spec);
                continue;
            };
            let differences = before.differences(&fixed);
            if differences.is_empty() {
                tasks.extend(change(pipeline, spec));
            } else {
                let because = differences.join(", ");
                info!(
                    pipeline = pipeline.name(),
                    because, "restarting with other settings"
                );
                tasks.push(Task::Restart(pipeline, Box::new(spec)));
            }
        }
        self.running = named;
        self.carry_out(tasks).await;
        // What they need may be what another has just let go.
        for spec in new {
            let name = std::sync::Arc::clone(&spec.name);
            match self.host.add(spec) {
                Ok(_) => info!(pipeline = %name, "started: it is new"),
                Err(error) => error!(pipeline = %name, %error, "not started"),
            }
        }
        info!(%file, "reloaded");
    }

    fn read(&self) -> Result<Config, String> {
        let config = load::reload(self.file, self.registry)?;
        for pipeline in &config.pipelines {
            pipeline.spec.check().map_err(|error| error.to_string())?;
        }
        Ok(config)
    }

    fn take_host(&mut self, new: &HostSpec) {
        let old = &self.settings;
        let keys = [
            ("listen", old.listen != new.listen),
            ("log", old.log != new.log),
            ("log_format", old.log_format != new.log_format),
        ];
        let kept: Vec<_> = keys
            .into_iter()
            .filter_map(|(key, differs)| differs.then_some(key))
            .collect();
        if !kept.is_empty() {
            let keys = kept.join(", ");
            warn!(keys, "these of [host] hold until the process is started again");
        }
        if old.shutdown_timeout != new.shutdown_timeout {
            info!(from = ?old.shutdown_timeout, to = ?new.shutdown_timeout, "`shutdown_timeout` changed");
            self.settings.shutdown_timeout = new.shutdown_timeout;
        }
    }

    /// Does all of it at once: a drain takes as long as it takes.
    async fn carry_out(&self, all: Vec<Task>) {
        let within = self.shutdown_timeout();
        let mut tasks = Tasks::default();
        let number = all.len();
        for (index, task) in all.into_iter().enumerate() {
            let host = self.host.clone();
            tasks.spawn(index, async move { task.run(&host, within).await });
        }
        for _ in 0..number {
            let (_, ended) = tasks.next().await;
            if let Err(died) = ended {
                error!(?died, "a pipeline was not restarted");
            }
        }
    }
}

impl Task {
    async fn run(self, host: &Host, within: Duration) {
        match self {
            Self::Remove(name) => {
                if let Some(report) = host.remove(&name, within).await {
                    info!(pipeline = name, "removed: {report}");
                    tell_left(&name, &report);
                }
            }
            Self::Restart(pipeline, spec) => match pipeline.restart(*spec, within).await {
                Ok(report) => {
                    info!(pipeline = pipeline.name(), "restarted: {report}");
                    tell_left(pipeline.name(), &report);
                }
                Err(error) => error!(pipeline = pipeline.name(), %error, "not restarted"),
            },
        }
    }
}

/// Changes what may change while it runs; one that has ended is started again if anything of it has changed.
fn change(pipeline: Pipeline, spec: PipelineSpec) -> Option<Task> {
    let changes = match pipeline.apply(&spec) {
        Ok(changes) => changes,
        Err(error) => {
            error!(pipeline = pipeline.name(), %error, "not changed");
            return None;
        }
    };
    if changes.is_empty() {
        return None;
    }
    let changed: Vec<_> = changes.iter().map(ToString::to_string).collect();
    let changed = changed.join(", ");
    let ended = matches!(
        pipeline.status().condition,
        Condition::Ended | Condition::GaveUp(_)
    );
    if ended {
        info!(
            pipeline = pipeline.name(),
            changed, "starting again with other settings"
        );
        return Some(Task::Restart(pipeline, Box::new(spec)));
    }
    info!(pipeline = pipeline.name(), changed, "changed while it runs");
    None
}

fn fixed(pipelines: &[PipelineConfig]) -> BTreeMap<String, Fixed> {
    let named = pipelines.iter();
    named
        .map(|pipeline| (pipeline.spec.name.to_string(), pipeline.fixed.clone()))
        .collect()
}

/// Says that a drain has left messages behind.
pub(crate) fn tell_left(pipeline: &str, report: &DrainReport) {
    if report.left > 0 {
        error!(pipeline, left = report.left, "messages were left at the deadline");
    }
}
