# The types of partitions that disko gives by code or GUID.
{ lib }:
let
  # The codes of sgdisk that disks of Linux have, with the name of a layout where there is one.
  codes = {
    EF00 = "esp";
    EF02 = "bios-boot";
    EA00 = "xbootldr";
    "8200" = "swap";
    "8300" = "linux";
    "8302" = "home";
    "8306" = "srv";
    "8310" = "var";
    "0700" = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7";
    "0C01" = "e3c9e316-0b5c-4db8-817d-f92df00215ae";
    "2700" = "de94bba4-06d1-4d40-a16a-bfd50179d6ac";
    "8301" = "8da63339-0007-60c0-c436-083ac8230908";
    "8303" = "44479540-f297-41b2-9af7-d131d5f0458a";
    "8304" = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
    "8305" = "b921b045-1df0-41c3-af44-4c6f280d3fae";
    "8307" = "69dad710-2ce4-4e3c-b16c-21a1d49abed3";
    "8308" = "7ffec5c9-2d00-49b7-8941-3ea10a5586b7";
    "8309" = "ca7d7ccb-63ed-4c53-861c-1742536059cc";
    "8311" = "7ec6f557-3bc5-4aca-b293-16ef5df639d1";
    "8E00" = "e6d6d379-f507-44c2-a23c-238f2a3df928";
    A504 = "516e7cba-6ecf-11d6-8ff8-00022d09712b";
    BF00 = "6a85cf4d-1dd2-11b2-99a6-080020736631";
    BF01 = "6a898cc3-1dd2-11b2-99a6-080020736631";
    FD00 = "a19d880f-05fc-4d3b-a006-743f0f84911e";
  };

  # Those of which more than the number matters: firmware, boot loaders and systemd look for them.
  names = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" = "esp";
    "21686148-6449-6e6f-744e-656564454649" = "bios-boot";
    "bc13c2ff-59e6-4262-a352-b275fd6f7172" = "xbootldr";
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" = "swap";
    "0fc63daf-8483-4772-8e79-3d69d8477de4" = "linux";
  };

  isGuid = text: builtins.match "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}" text != null;
in
{
  # Returns the type of a layout, or null where the code is not known.
  read =
    text:
    let
      guid = lib.toLower text;
    in
    codes.${lib.toUpper text} or (if isGuid guid then names.${guid} or guid else null);
}
