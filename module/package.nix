# The installer, static, with its man pages and completions.
{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
  util-linux,
}:
let
  cargo = lib.importTOML ../Cargo.toml;
  # Those that the program runs when it is called by their names.
  commands = [
    "install-to-disk"
    "install-to-dir"
    "install-via-ssh"
    "deploy-to-dir"
    "deploy-via-ssh"
  ];
in
rustPlatform.buildRustPackage {
  pname = cargo.package.name;
  inherit (cargo.package) version;

  # Cargo looks for all targets of Cargo.toml, also for those that are not built.
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../.cargo
      ../Cargo.lock
      ../Cargo.toml
      ../build.rs
      ../src
      ../tests/bench
      ../tests/demo
      ../tests/it
      ../tests/static.sh
      (lib.fileset.maybeMissing ../templates)
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  # The tests attach loop devices and start virtual machines, which a build may not.
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];
  postInstall = ''
    for command in ${toString commands}; do
      ln -s nixos-install-via $out/bin/$command
    done
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    mkdir man
    $out/bin/nixos-install-via man man
    installManPage man/*
    for shell in bash fish zsh; do
      $out/bin/nixos-install-via completions $shell > all.$shell
      installShellCompletion --cmd nixos-install-via --$shell all.$shell
      for command in ${toString commands}; do
        $out/bin/nixos-install-via completions $shell $command > one.$shell
        installShellCompletion --cmd $command --$shell one.$shell
      done
    done
  '';

  # Debug information is all that is stripped elsewhere.
  stripAllList = [ "bin" ];

  # What is checked of every release, but for its size, which is another one with each compiler.
  doInstallCheck = stdenv.buildPlatform.canExecute stdenv.hostPlatform;
  nativeInstallCheckInputs = [ util-linux ];
  installCheckPhase = ''
    runHook preInstallCheck
    sh tests/static.sh $out/bin/nixos-install-via
    runHook postInstallCheck
  '';

  meta = {
    inherit (cargo.package) description;
    license = lib.licenses.mit;
    mainProgram = "nixos-install-via";
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
  };
}
