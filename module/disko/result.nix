# What a part of disko.devices is read to: a value, the problems that keep it from being made, and
# warnings of what is made otherwise.
rec {
  good = value: {
    inherit value;
    problems = [ ];
    warnings = [ ];
  };

  bad = path: why: good null // { problems = [ "${path} ${why}" ]; };

  # Adds the notes of parts, or of one's own, to a result.
  noting =
    result: notes:
    result
    // {
      problems = result.problems ++ notes.problems or [ ];
      warnings = result.warnings ++ notes.warnings or [ ];
    };
}
