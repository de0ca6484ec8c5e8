//! `run`: a host from its start to its end.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use millstream_config::{Config, Registry};
use millstream_core::{Condition, Host};
use millstream_ops::Listener;
use tracing::{error, info, warn};

use crate::args::Run;
use crate::load::load;
use crate::program::{BAD_CONFIG, runtime};
use crate::reload::{Reloader, tell_left};
use crate::signals::{Signal, Signals};
use crate::{log, screen, status, summary};

pub(crate) fn run(args: &Run, registry: &Registry) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.file, registry) else {
        return Ok(BAD_CONFIG.into());
    };
    log::start(&config.host)?;
    let runtime = runtime()?;
    let until_idle = args.until_idle.map(Duration::from);
    let ended = runtime.block_on(serve(&args.file, registry, config, until_idle));
    // A handler that blocks its thread must not keep the process.
    runtime.shutdown_background();
    Ok(match ended? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Runs the pipelines until they shall end; whether all is well then.
async fn serve(
    file: &Path,
    registry: &Registry,
    config: Config,
    until_idle: Option<Duration>,
) -> anyhow::Result<bool> {
    // Before the first message is taken: from now on a signal drains.
    let mut signals = Signals::listen()?.and_reload()?;
    let listener = match config.host.listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let specs = config.pipelines.iter().map(|pipeline| pipeline.spec.clone());
    let host = Host::start(specs)?;
    let mut reloader = Reloader::new(file, registry, host.clone(), &config);
    // A connector that runs no more shall keep nothing open.
    drop(config);
    let answers = async {
        match listener {
            // Through the drain, to its end.
            Some(listener) => listener.serve(host.clone()).await,
            None => std::future::pending().await,
        }
    };
    let view = async {
        if screen::is_terminal() {
            status::show(&host).await;
        } else {
            summary::log(&host).await;
        }
    };
    let work = async {
        until_over(&host, &mut signals, &mut reloader, until_idle).await;
        drain(&host, &mut signals, reloader.shutdown_timeout()).await
    };
    Ok(tokio::select! {
        biased;
        well = work => well,
        () = view => false,
        () = answers => false,
    })
}

/// Takes the address before any message is, so that a second process of the same file ends with nothing done.
async fn listen(address: SocketAddr) -> anyhow::Result<Listener> {
    let listener = Listener::bind(address)
        .await
        .context("`listen` of [host] cannot be had")?;
    info!("listening: http://{}/metrics", listener.address());
    Ok(listener)
}

/// Waits for a signal to end, for all pipelines to be idle that long, or for the host to have ended by itself; takes over
/// what has changed in the file whenever a signal says so.
async fn until_over(
    host: &Host,
    signals: &mut Signals,
    reloader: &mut Reloader<'_>,
    until_idle: Option<Duration>,
) {
    loop {
        let idle = async {
            match until_idle {
                Some(quiet) => host.idle(quiet).await,
                None => std::future::pending().await,
            }
        };
        let signal = tokio::select! {
            biased;
            signal = signals.next() => signal,
            () = host.ended() => return,
            () = idle => return info!("idle: draining"),
        };
        let ends = match signal {
            Signal::End(name) => Some(name),
            Signal::Reload => tokio::select! {
                biased;
                name = signals.end() => Some(name),
                () = reloader.reload() => None,
            },
        };
        if let Some(name) = ends {
            return info!("{name}: draining; another one releases at once");
        }
    }
}

/// Drains all pipelines; whether none had given up or left a message behind.
async fn drain(host: &Host, signals: &mut Signals, timeout: Duration) -> bool {
    let mut drain = std::pin::pin!(host.drain(timeout));
    let reports = tokio::select! {
        biased;
        reports = &mut drain => reports,
        signal = signals.end() => {
            warn!("{signal}: releasing what is in flight");
            host.release_now();
            drain.await
        }
    };
    let mut well = true;
    for (name, report) in &reports {
        tell_left(name, report);
        well &= report.left == 0;
    }
    for pipeline in host.pipelines() {
        if let Condition::GaveUp(cause) = pipeline.status().condition {
            error!(pipeline = pipeline.name(), cause, "had given up");
            well = false;
        }
    }
    well
}
