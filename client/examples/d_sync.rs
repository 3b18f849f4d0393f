use client::path::RemotePath;
use client::profile::Profile;
use client::sync::config::SyncConfig;
use client::sync::session::Session;
use std::path::Path;
#[tokio::main]
async fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let args: Vec<String> = std::env::args().collect();
    let profile_path = Path::new(&args[1]);
    let profile = Profile::load(profile_path).unwrap();
    let options = profile.connect_options(profile_path).unwrap();
    let once = args.iter().any(|a| a == "--once");
    let name = args[2].rsplit('/').next().unwrap().to_owned();
    let mut config = SyncConfig::new(args[2].clone().into(), RemotePath::parse(&args[3]).unwrap(), options);
    config.name = Some(name);
    let handle = match Session::start(config).await {
        Ok(h) => h,
        Err(e) => {
            eprintln!("start: {e}");
            std::process::exit(2)
        }
    };
    let mut events = handle.events();
    let t0 = std::time::Instant::now();
    let verbose = std::env::var("D_QUIET").is_err();
    let printer = tokio::spawn(async move {
        loop {
            match events.recv().await {
                Ok(e) => {
                    if verbose {
                        println!(
                            "{:8.3} {} {} {}",
                            t0.elapsed().as_secs_f64(),
                            e.what.word(),
                            e.path,
                            e.detail
                        )
                    }
                }
                Err(tokio::sync::broadcast::error::RecvError::Lagged(n)) => println!("lagged {n}"),
                Err(_) => break,
            }
        }
    });
    if once {
        let quiet = handle.quiet().await;
        println!("{:8.3} {:?}", t0.elapsed().as_secs_f64(), quiet);
        let s = handle.status();
        println!("up {:?} down {:?} agreed {}", s.up, s.down, s.agreed_count);
        handle.stop().await;
        std::process::exit(match quiet {
            Ok(q) if q.agreed => 0,
            _ => 1,
        });
    }
    tokio::select! { _ = tokio::signal::ctrl_c() => {}, e = handle.ended_wait() => println!("ended: {e}") }
    handle.stop().await;
    println!("{:?}", handle.status());
    drop(printer);
}
