//! `run`: a host from its start to its end.

use std::net::SocketAddr;
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
use crate::signals::Signals;
use crate::{log, screen, status, summary};

pub(crate) fn run(args: &Run, registry: &Registry) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.file, registry) else {
        return Ok(BAD_CONFIG.into());
    };
    log::start(&config.host)?;
    let runtime = runtime()?;
    let until_idle = args.until_idle.map(Duration::from);
    let ended = runtime.block_on(serve(config, until_idle));
    // A handler that blocks its thread must not keep the process.
    runtime.shutdown_background();
    Ok(match ended? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Runs the pipelines until they shall end; whether all is well then.
async fn serve(config: Config, until_idle: Option<Duration>) -> anyhow::Result<bool> {
    // Before the first message is taken: from now on a signal drains.
    let mut signals = Signals::listen()?;
    let timeout = config.host.shutdown_timeout;
    let listener = match config.host.listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let host = Host::start(config.pipelines.into_iter().map(|pipeline| pipeline.spec))?;
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
        until_over(&host, &mut signals, until_idle).await;
        drain(&host, &mut signals, timeout).await
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

/// Waits for a signal, for all pipelines to be idle that long, or for the host to have ended by itself.
async fn until_over(host: &Host, signals: &mut Signals, until_idle: Option<Duration>) {
    let idle = async {
        match until_idle {
            Some(quiet) => host.idle(quiet).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        signal = signals.next() => info!("{signal}: draining; another one releases at once"),
        () = host.ended() => {}
        () = idle => info!("idle: draining"),
    }
}

/// Drains all pipelines; whether none had given up or left a message behind.
async fn drain(host: &Host, signals: &mut Signals, timeout: Duration) -> bool {
    let mut drain = std::pin::pin!(host.drain(timeout));
    let reports = tokio::select! {
        biased;
        reports = &mut drain => reports,
        signal = signals.next() => {
            warn!("{signal}: releasing what is in flight");
            host.release_now();
            drain.await
        }
    };
    let mut well = true;
    for (name, report) in &reports {
        if report.left > 0 {
            error!(pipeline = %name, left = report.left, "messages were left at the deadline");
            well = false;
        }
    }
    for pipeline in host.pipelines() {
        if let Condition::GaveUp(cause) = pipeline.status().condition {
            error!(pipeline = pipeline.name(), cause, "had given up");
            well = false;
        }
    }
    well
}
