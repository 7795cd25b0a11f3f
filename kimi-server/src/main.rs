//! The `kimi` binary; everything is in the library, where tests can call it.

fn main() -> std::process::ExitCode {
    kimi_server::cli::main()
}
