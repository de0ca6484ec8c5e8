//! Starts a broker, says where it is, and keeps it until its input ends: for a look by hand, and for the test that
//! kills it.

use std::io::{Read, Write};

use millstream_brokers::{Kafka, RabbitMq, Series};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let series = match arguments.next().as_deref() {
        Some("rabbitmq3") => Series::V3,
        Some("rabbitmq4") => Series::V4,
        Some("kafka") => return kafka(),
        _ => return Err("usage: brokers kafka|rabbitmq3|rabbitmq4 [management]".into()),
    };
    let management = arguments.next().is_some_and(|word| word == "management");
    let broker = RabbitMq::builder(series).management(management).start()?;
    println!("{}", broker.url());
    println!("{}", broker.log_path().display());
    if management {
        println!("{}", broker.management_url());
    }
    until_input_ends()
}

fn kafka() -> Result<(), Box<dyn std::error::Error>> {
    let kafka = Kafka::builder().start()?;
    println!("{}", kafka.brokers());
    for log in kafka.log_paths() {
        println!("{}", log.display());
    }
    until_input_ends()
}

fn until_input_ends() -> Result<(), Box<dyn std::error::Error>> {
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
