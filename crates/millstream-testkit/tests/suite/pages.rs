//! The table in a page.

use millstream_testkit::conformance::{self, Report, Row, Scale, Verdict, page};
use std::time::Duration;

const PAGE: &str =
    "# Title\n\n<!-- conformance table: generated -->\n<!-- end of the conformance table -->\n\nEnd.\n";

fn report(subject: &str, verdict: &Verdict) -> Report {
    Report {
        subject: subject.to_owned(),
        scale: Scale::Small,
        rows: conformance::cases()
            .iter()
            .map(|case| Row {
                case,
                verdict: verdict.clone(),
                took: Duration::ZERO,
            })
            .collect(),
    }
}

#[test]
fn a_report_adds_its_column_and_leaves_everything_else() {
    let one = page::update(PAGE, &report("one", &Verdict::Passed)).unwrap();
    assert!(one.starts_with("# Title\n") && one.ends_with("\n\nEnd.\n"));
    let number = conformance::cases().len();
    assert_eq!(one.matches("| passed |").count(), number);
    assert!(one.contains(&format!("| {number} of {number} |")));

    let failed = Verdict::Failed("so it was".to_owned());
    let both = page::update(&one, &report("two", &failed)).unwrap();
    assert_eq!(both.matches("| passed | FAILED |").count(), number);
    assert!(both.contains("| guards | one | two |"));
}

#[test]
fn a_page_is_up_to_date_until_a_report_says_otherwise() {
    let page = page::update(PAGE, &report("one", &Verdict::Passed)).unwrap();
    let page = page::update(&page, &report("two", &Verdict::Passed)).unwrap();
    for subject in ["one", "two"] {
        assert_eq!(
            page::update(&page, &report(subject, &Verdict::Passed)).unwrap(),
            page
        );
    }
    let missing = Verdict::NotDeclared(conformance::Feature::Delay);
    let other = page::update(&page, &report("one", &missing)).unwrap();
    assert_ne!(other, page);
    assert!(other.contains("| not declared: delay | passed |"));
}

#[test]
fn a_page_without_a_table_is_an_error() {
    assert!(page::update("# Title\n", &report("one", &Verdict::Passed)).is_err());
}
