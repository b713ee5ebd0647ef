"""Faults in what runs a model from its file, and the test that notices each."""

READING, STORAGE = "contexts/reading.py", "contexts/storage.py"
T = "tests/test_contexts_storage.py::test_"
BITS = T + "logits_have_the_bits_of_a_loaded_model"
STAYS = T + "a_part_stays_until_it_is_released"
NEXT = T + "the_next_pass_is_read_before_it_is_asked_for"
READS = T + "a_pass_reads_what_is_not_pinned_and_its_rows"
WIDE = T + "every_number_is_widened_as_a_loaded_one"
ENDS = T + "closed_layers_say_so_and_leave_no_thread"

MUTANTS = [
    # a buffer is filled while it is used, or given back too early
    (
        READING,
        "self.filled - self.used >= self.buffers and",
        "self.filled - self.used > self.buffers and",
        STAYS,
    ),
    (
        STORAGE,
        "            yield self._layer(self._tensors(i, number))\n",
        "            self.reader.release(number)\n"
        "            yield self._layer(self._tensors(i, number))\n",
        BITS,
    ),
    (
        STORAGE,
        "        y = multiply(a, weight.reshape(span.shape).T)\n",
        "        self.reader.release(number)\n"
        "        y = multiply(a, weight.reshape(span.shape).T)\n",
        BITS,
    ),
    # the thread stops after a pass; it stays one part ahead
    (
        READING,
        "self.filled - self.used >= self.buffers and not self.closed",
        "(self.filled - self.used >= self.buffers or self.used < self.filled and "
        "self.filled % len(self.order) == 0) and not self.closed",
        NEXT,
    ),
    (
        READING,
        "self.filled - self.used >= self.buffers and not self.closed",
        "self.filled > self.used and not self.closed",
        NEXT,
    ),
    # widened in another way, or in the wrong place
    (READING, "np.left_shift(bits, 16, out=bits)", "pass", WIDE),
    (
        READING,
        "        np.copyto(bits, tensor)\n",
        "        np.copyto(bits, tensor.view(np.int16), casting='unsafe')\n"
        "        bits -= bits >> 31\n",
        WIDE,
    ),
    (
        READING,
        "            widen_into(some, raw, found.stored)\n",
        "            widen_into(raw.astype(np.float32), raw, found.stored)\n",
        BITS,
    ),
    # pieces: off by one, at the wrong place, in the wrong place
    (
        READING,
        "    for e in range(0, span.size, PIECE):\n        some",
        "    for e in range(0, span.size - 1, PIECE):\n        some",
        BITS,
    ),
    (READING, "some = out[e : e + PIECE]", "some = out[e : e + PIECE - 1]", BITS),
    (
        READING,
        "at = span.at + e * found.itemsize",
        "at = span.at + e",
        BITS,
    ),
    (READING, "array[e : e + PIECE])", "array[:PIECE])", BITS),
    # reads are repeated from the beginning if they come in parts
    (
        READING,
        "self._read(at + done, view[done:])",
        "self._read(at, view[done:])",
        T + "a_read_that_comes_in_parts_is_put_together",
    ),
    # pinned layers are read all the same; the layers of another pass are kept
    (STORAGE, "        if part in pinned:\n", "        if False:\n", READS),
    (
        STORAGE,
        'set(pinned) if found.stored == "float32" else set()',
        "set()",
        T + "pinned_layers_that_need_no_widening_need_no_buffer",
    ),
    (
        READING,
        "if self.order[self.used % len(self.order)] == part:",
        "if True:",
        T + "a_pass_that_was_broken_off_leaves_the_next_one_whole",
    ),
    (
        READING,
        "self.used = max(self.used, number + 1)",
        "self.used += 1",
        T + "what_is_released_twice_is_released_once",
    ),
    # the closed form forgets the rows, or counts what is pinned
    (STORAGE, "+ positions * row\n", "+ row\n", READS),
    (STORAGE, "if i not in pinned)\n    row", ")\n    row", READS),
    # the embedding's rows are those of others
    (
        STORAGE,
        "found.embed.at + token * row.nbytes",
        "found.embed.at + token * row.size",
        BITS,
    ),
    # the end of a file is read for ever, or as nothing; errors are kept back
    (
        READING,
        'raise ValueError(f"{self.path}: ends at byte {at}: truncated meanwhile")',
        "return len(view)",
        T + "a_file_that_is_cut_while_it_is_read_is_told",
    ),
    (
        READING,
        "raise OSError(error.errno, error.strerror, str(self.path)) from None",
        "return len(view)",
        T + "an_error_of_the_disk_surfaces_where_the_layer_is_used",
    ),
    # a thread stays
    (
        READING,
        "                    if self.closed:\n",
        "                    if False:\n",
        T + "a_long_read_is_given_up_when_it_is_closed",
    ),
    (STORAGE, "    source.file.close()\n", "", ENDS),
    (
        STORAGE,
        "weakref.finalize(self, close_both, self.reader, source)",
        "partial(close_both, self.reader, source)",
        T + "forgotten_layers_leave_no_thread",
    ),
]
