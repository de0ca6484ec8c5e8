//! Runs cases: [`run`], [`run_one`].

use std::any::Any;
use std::sync::Arc;

use millstream_core::rt::{self, Duration};

use super::cases::{ALL, Case};
use super::report::{Report, Row, Verdict};
use super::scale::Scale;
use super::subject::{DynSubject, Subject};
use super::trial::Trial;

/// No case may take longer; each wait within one gives up long before.
const LONGEST: Duration = Duration::from_secs(300);

/// All cases, in the order in which they run.
pub fn cases() -> &'static [Case] {
    ALL
}

/// Runs every case that the subject declares what it needs for, one after another. A case that panics fails alone.
///
/// Needs a tokio runtime with its clock enabled; one with several threads is nearer to life.
pub async fn run(subject: impl Subject, scale: Scale) -> Report {
    let subject: Arc<dyn DynSubject> = Arc::new(subject);
    let mut report = Report {
        subject: subject.name().to_owned(),
        scale,
        rows: Vec::new(),
    };
    for case in ALL {
        report.rows.push(run_case(&subject, case, scale).await);
    }
    report
}

/// Runs the case of this name alone.
///
/// # Panics
/// If there is no such case.
pub async fn run_one(subject: impl Subject, scale: Scale, name: &str) -> Row {
    let case = ALL.iter().find(|case| case.name == name);
    let case = case.unwrap_or_else(|| panic!("there is no case `{name}`"));
    run_case(&(Arc::new(subject) as Arc<dyn DynSubject>), case, scale).await
}

async fn run_case(subject: &Arc<dyn DynSubject>, case: &'static Case, scale: Scale) -> Row {
    let features = subject.declares();
    let began = rt::now();
    let missing = case.needs.iter().find(|feature| !features.has(**feature));
    let verdict = match missing {
        Some(feature) => Verdict::NotDeclared(*feature),
        None => attempt(Arc::clone(subject), case, scale).await,
    };
    Row {
        case,
        verdict,
        took: began.elapsed(),
    }
}

async fn attempt(subject: Arc<dyn DynSubject>, case: &'static Case, scale: Scale) -> Verdict {
    let mut task = rt::spawn((case.run)(Trial::new(subject, case.name, scale)));
    match tokio::time::timeout(LONGEST, &mut task).await {
        Ok(Ok(())) => Verdict::Passed,
        Ok(Err(error)) => Verdict::Failed(match error.try_into_panic() {
            Ok(panic) => text_of(&*panic),
            Err(error) => error.to_string(),
        }),
        Err(_) => {
            task.abort();
            Verdict::Failed(format!("it did not end within {LONGEST:?}"))
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked without words").to_owned()
}
