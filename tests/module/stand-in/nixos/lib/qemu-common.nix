# The one function of nixpkgs' file of this name that the checks call.
_: { qemuBinary = package: "${package}/bin/qemu-kvm"; }
