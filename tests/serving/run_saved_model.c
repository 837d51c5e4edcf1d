/* Runs two signatures of a SavedModel without Python.

   run_saved_model MODEL \
       INPUT OUTPUT INDEX FILE  INPUT OUTPUT INDEX FILE  LIBRARY...

   INPUT and OUTPUT are operations of the graph, as `saved_model_cli show`
   names them (NAME:INDEX). The bytes of FILE are the one row of the batch.
   Prints a line of numbers for each signature. Each LIBRARY registers
   operations, here those of TensorFlow Text. */

#include <stdio.h>
#include <stdlib.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

static TF_Status* status;

static void check(const char* what) {
  if (TF_GetCode(status) == TF_OK) return;
  fprintf(stderr, "%s: %s\n", what, TF_Message(status));
  exit(1);
}

static TF_Tensor* one_string(const char* path) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) {
    perror(path);
    exit(1);
  }
  fseek(file, 0, SEEK_END);
  long size = ftell(file);
  rewind(file);
  char* bytes = malloc(size + 1);
  if (fread(bytes, 1, size, file) != (size_t)size) exit(1);
  fclose(file);
  const int64_t shape[] = {1};
  TF_Tensor* tensor = TF_AllocateTensor(TF_STRING, shape, 1, sizeof(TF_TString));
  TF_TString* string = TF_TensorData(tensor);
  TF_StringInit(string);
  TF_StringCopy(string, bytes, size);
  free(bytes);
  return tensor;
}

static TF_Output port(TF_Graph* graph, const char* name, int index) {
  TF_Output output = {TF_GraphOperationByName(graph, name), index};
  if (output.oper == NULL) {
    fprintf(stderr, "there is no operation %s\n", name);
    exit(1);
  }
  return output;
}

int main(int argc, char** argv) {
  if (argc < 10) return 2;
  status = TF_NewStatus();
  for (int i = 10; i < argc; ++i) {
    TF_LoadLibrary(argv[i], status);
    check(argv[i]);
  }
  const char* tags[] = {"serve"};
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  TF_Session* session = TF_LoadSessionFromSavedModel(
      options, NULL, argv[1], tags, 1, graph, NULL, status);
  check("load");
  for (char** call = argv + 2; call < argv + 10; call += 4) {
    TF_Output input = port(graph, call[0], 0);
    TF_Output output = port(graph, call[1], atoi(call[2]));
    TF_Tensor* value = one_string(call[3]);
    TF_Tensor* result = NULL;
    TF_SessionRun(session, NULL, &input, &value, 1, &output, &result, 1, NULL,
                  0, NULL, status);
    check("run");
    const float* numbers = TF_TensorData(result);
    for (int64_t i = 0; i < TF_TensorElementCount(result); ++i) {
      printf("%.9g ", numbers[i]);
    }
    printf("\n");
  }
  return 0;
}
