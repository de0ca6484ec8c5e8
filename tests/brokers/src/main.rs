//! Starts a broker, says where it is, and keeps it until its input ends: for a look by hand, and for the test that
//! kills it.

use std::io::{Read, Write};

use millstream_brokers::{ElasticMq, Kafka, RabbitMq, Series};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let series = match arguments.next().as_deref() {
        Some("rabbitmq3") => Series::V3,
        Some("rabbitmq4") => Series::V4,
        Some("kafka") => {
            let broker = Kafka::builder().start()?;
            let mut said = vec![broker.brokers()];
            said.extend(broker.log_paths().iter().map(|log| log.display().to_string()));
            return keep(&said);
        }
        Some("elasticmq") => {
            let broker = ElasticMq::start()?;
            return keep(&[broker.url(), broker.log_path().display().to_string()]);
        }
        _ => return Err("usage: brokers kafka|rabbitmq3|rabbitmq4|elasticmq [management]".into()),
    };
    let management = arguments.next().is_some_and(|word| word == "management");
    let broker = RabbitMq::builder(series).management(management).start()?;
    let mut said = vec![broker.url(), broker.log_path().display().to_string()];
    if management {
        said.push(broker.management_url());
    }
    keep(&said)
}

/// Says where the broker is, and waits until it is wanted no more.
fn keep(said: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    println!("{}", said.join("\n"));
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
