/*
 * The binary as a file: what it needs beside itself to be executed in a cell, where there is
 * nothing else.
 */
#pragma once

#include <stdbool.h>

/* The file that executes the program at path: the loader of a dynamic one, the interpreter of a
 * script. False: it needs none, or that can't be told, as of a file that may be executed but not
 * read. out has room for PATH_MAX bytes. A program that can't be opened ends the process. */
bool program_interpreter(char *out, const char *path);
