"""Faults of files and of those who write them, each with the law that must notice it."""

WHOLE, HOSTILE = "test_whole.py::test_", "test_golden_hostile.py::test_"
PROMPTS, WEIGHTS = "test_golden_prompts.py::test_", "test_weights.py::test_"
INFO = "test_cli_info.py::test_"

# fmt: off
MUTANTS = [
    ("files/whole.py", "        if stat.S_ISLNK(kind):\n", "        if False:\n",
     WHOLE + "no_link_is_followed"),
    ("files/whole.py", '"xb+"', '"wb+"', WHOLE + "no_link_is_followed"),
    ("files/whole.py", "                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
     "", WHOLE + "a_part_that_was_left_is_removed_and_one_that_grows_is_not"),
    ("files/whole.py", "if not part.exists():", "if False:",
     WHOLE + "a_part_that_is_taken_for_a_left_one_is_begun_again"),
    ("files/whole.py", "error.filename not in (None, str(part))", "True",
     WHOLE + "an_error_names_the_file_and_not_its_part"),
    ("files/whole.py", "if path.exists() and path.samefile(source):",
     "if str(path) == str(source):",
     WHOLE + "a_source_is_not_written_over_under_any_of_its_names"),
    ("files/whole.py", "{path.name[:KEPT]}.{secrets", "{path.name}.{secrets",
     WHOLE + "a_name_may_be_as_long_as_the_system_lets_it"),
    ("files/ending.py", "        if heard:\n", "        if False:\n",
     WHOLE + "an_import_that_makes_its_own_error_of_a_signal_hides_nothing"),
    ("files/ending.py", "        _thread.interrupt_main(signal.Signals(heard[-1]))", "        pass",
     WHOLE + "a_signal_that_arrives_where_exceptions_are_ignored_ends_the_block"),
    ("files/ending.py", "main and signal.getsignal(n) == usual[n]", "main",
     WHOLE + "a_signal_that_is_ignored_or_handled_stays_so"),
    ("files/npz.py", "    if found != info.CRC:\n", "    if False:\n",
     HOSTILE + "no_flipped_bit_goes_unnoticed_where_it_changes_a_number"),
    ("files/npz.py", 'if any(b"PK\\x01\\x02" in', 'if any(b"PK" * 99 in',
     HOSTILE + "no_flipped_bit_goes_unnoticed_where_it_changes_a_number"),
    ("files/npz.py", "type(length) is not int", "not isinstance(length, int)",
     HOSTILE + "a_hostile_file_is_one_line_and_exit_code_two"),
    ("files/npz.py", "        archive.fp = None\n", "        archive.close()\n",
     WEIGHTS + "an_interrupt_while_a_member_is_opened_is_not_hidden"),
    ("files/npz.py", "    if unpack and packed > unpack:\n", "    if False:\n",
     HOSTILE + "a_compressed_candidate_is_read_within_a_limit"),
    ("golden/trace.py", "        if near:\n", "        if False:\n",
     HOSTILE + "a_misspelt_name_is_told_with_the_right_one"),
    ("files/whole.py", "return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns",
     "return 0, 0, 0, 0", PROMPTS + "a_model_that_was_replaced_is_read_anew"),
    ("golden/prompts.py", "    _check_stamp(weights, stamp)\n    return model\n",
     "    return model\n", PROMPTS + "a_model_that_is_replaced_while_it_is_read_is_told"),
    ("cli/info.py", "Reading(check)", "Reading()",
     INFO + "a_flipped_bit_in_any_member_is_found_and_the_member_named"),
]
